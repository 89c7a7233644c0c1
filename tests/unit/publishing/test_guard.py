"""The guard: what its windows say of a version, and how noise does not."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.errors import ConfigError
from headrace.publishing.guard import Guard, GuardLimits

LIMITS = GuardLimits(max_ne=0.9, calibration=0.2, rows=100, windows=3)


def labels_of(num_windows: int) -> np.ndarray:
    return np.tile(np.array([1, 0, 0, 0]), 25 * num_windows).astype(np.float32)


def predictions_of(num_windows: int, quality: float, scale: float = 1.0) -> np.ndarray:
    labels = labels_of(num_windows)
    return (scale * (0.25 + quality * (labels - 0.25))).astype(np.float32)


def test_limits_are_read_from_text() -> None:
    assert GuardLimits.of("ne=0.9, calibration=0.2,rows=100,windows=3") == LIMITS
    assert GuardLimits.of("ne=1") == GuardLimits(max_ne=1.0)
    for text in ("ne=0.9,rows=1.5", "ne=x", "", "auc=0.5", "ne=0"):
        with pytest.raises(ConfigError, match=r"--guard: given '.*', expected ne=NUMBER, calibration=NUMBER, rows"):
            GuardLimits.of(text)
    with pytest.raises(ConfigError, match="expected ne=NUMBER, calibration=NUMBER, or both"):
        GuardLimits.of("rows=10")


def test_known_values_of_normalized_entropy_and_calibration() -> None:
    guard = Guard(GuardLimits(max_ne=0.999999, calibration=0.5, rows=100, windows=1))
    (constant,) = guard.add(1, predictions_of(1, 0.0), labels_of(1))
    assert (constant.verdict, constant.reason[:27]) == ("bad", "normalized entropy 1.0000 a")
    (twice,) = guard.add(2, predictions_of(1, 0.9, 2.0).clip(0, 1), labels_of(1))
    assert twice.verdict == "good"
    guard = Guard(GuardLimits(calibration=0.5, rows=100, windows=1))
    (twice,) = guard.add(2, predictions_of(1, 0.0, 2.0), labels_of(1))
    assert twice.reason == "calibration 2.0000 not within 0.5 of 1, in 1 windows of 100 labels in a row"


def test_a_version_is_bad_after_several_windows_in_a_row() -> None:
    guard = Guard(LIMITS)
    bad, good = predictions_of(1, 0.0), predictions_of(1, 0.8)
    verdicts = [guard.add(4, each, labels_of(1))[0].verdict for each in (bad, bad, good, bad, bad, bad)]
    assert verdicts == ["outside", "outside", "good", "outside", "outside", "bad"]
    assert guard.good == 4


def test_windows_are_of_one_version_and_filled_by_any_number_of_calls() -> None:
    guard = Guard(LIMITS)
    assert guard.add(1, predictions_of(3, 0.0)[:290], labels_of(3)[:290])[-1].verdict == "outside"
    assert guard.add(2, predictions_of(3, 0.8)[:90], labels_of(3)[:90]) == []
    assert guard.add(1, predictions_of(3, 0.0), labels_of(3)) == []
    (judged,) = guard.add(2, predictions_of(1, 0.8)[90:], labels_of(1)[90:])
    assert (judged.verdict, guard.good) == ("good", 2)
    guard.start_at(1)
    assert [each.verdict for each in guard.add(1, predictions_of(3, 0.0), labels_of(3))] == ["outside"] * 2 + ["bad"]


def test_predictions_that_are_not_numbers_are_outside() -> None:
    guard = Guard(LIMITS)
    (judged,) = guard.add(1, np.full(100, np.nan, np.float32), labels_of(1))
    assert (judged.verdict, judged.reason) == ("outside", "predictions are not numbers")
