"""`Guard`: decides from fed-back labels whether the served version is good, or has to be rolled back."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from headrace.errors import ConfigError

__all__ = ["Guard", "GuardLimits", "Judgement", "Window"]

CLIP = 1e-7
"""Predictions are at least this far from 0 and 1, so that one row cannot decide."""


@dataclass(frozen=True)
class GuardLimits:
    """When a version is bad; see `of`.

    Attributes:
        max_ne: Maximum normalized entropy: log loss, divided by the entropy of the rate of positive labels (He et al.,
            "Practical lessons from predicting clicks on ads at Facebook", 2014, section 3); None for any.
        calibration: Maximum distance from 1 of the mean prediction, divided by the mean label; None for any.
        rows: Labels of a window.
        windows: Windows in a row outside these limits that make a version bad.
    """

    max_ne: float | None = None
    calibration: float | None = None
    rows: int = 10_000
    windows: int = 3

    @classmethod
    def of(cls, text: str) -> GuardLimits:
        """Limits from text such as `ne=0.95,calibration=0.1,rows=10000,windows=3`.

        Raises:
            ConfigError: A part is not a limit, or there is neither `ne` nor `calibration`.
        """
        found: dict[str, float | int] = {}
        for part in text.split(","):
            match = re.fullmatch(r"\s*(ne|calibration|rows|windows)=([0-9]+(?:\.[0-9]+)?)\s*", part)
            is_whole = match is not None and match[1] in ("rows", "windows")
            if match is None or float(match[2]) <= 0 or (is_whole and "." in match[2]):
                raise ConfigError(
                    f"--guard: given {part!r}, expected ne=NUMBER, calibration=NUMBER, rows=COUNT or windows=COUNT, "
                    "above 0"
                )
            found["max_ne" if match[1] == "ne" else match[1]] = int(match[2]) if is_whole else float(match[2])
        if not {"max_ne", "calibration"} & set(found):
            raise ConfigError(f"--guard: given {text!r}, expected ne=NUMBER, calibration=NUMBER, or both")
        return cls(**found)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Window:
    """Sums over the labels of a window."""

    rows: int = 0
    log_loss: float = 0.0
    predicted: float = 0.0
    positive: float = 0.0

    @property
    def ne(self) -> float | None:
        """Normalized entropy; None if all labels are the same."""
        rate = self.positive / self.rows if self.rows else 0.0
        if not 0 < rate < 1:
            return None
        return self.log_loss / self.rows / -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))

    @property
    def calibration(self) -> float | None:
        """Mean prediction, divided by the mean label; None without a positive label."""
        return self.predicted / self.positive if self.positive else None

    def add(self, predictions: npt.NDArray[np.floating], labels: npt.NDArray[np.floating]) -> Window:
        """With further labels [N] of predictions [N]."""
        clipped = np.clip(predictions.astype(np.float64), CLIP, 1 - CLIP)
        log_loss = -np.where(labels > 0.5, np.log(clipped), np.log1p(-clipped)).sum()
        return Window(
            self.rows + len(labels),
            self.log_loss + float(log_loss),
            self.predicted + float(predictions.sum(dtype=np.float64)),
            self.positive + float((labels > 0.5).sum()),
        )


@dataclass(frozen=True)
class Judgement:
    """What a full window says of a version: `good`, `outside` the limits, or `bad` after several outside; and why."""

    version: int
    verdict: Literal["good", "outside", "bad"]
    reason: str


class Guard:
    """Judges the served version by windows of predictions and their labels. Not thread-safe.

    One window outside the limits can be noise, so a version is bad after several in a row; a window inside makes it
    good, and the count starts anew.

    Args:
        limits: The limits.

    Attributes:
        good: The newest version that had a window inside the limits; None if there is none.
    """

    def __init__(self, limits: GuardLimits) -> None:
        self.limits = limits
        self.good: int | None = None
        self._version, self._window, self._num_outside = 0, Window(), 0

    def add(
        self, version: int, predictions: npt.NDArray[np.floating], labels: npt.NDArray[np.floating]
    ) -> list[Judgement]:
        """Add labels [N] of predictions [N] that a version made; those of versions before the judged one are ignored.

        Returns:
            A judgement for each window that was filled.
        """
        if version < self._version:
            return []
        if version > self._version:
            self._version, self._window, self._num_outside = version, Window(), 0
        judgements = []
        while len(labels):
            room = self.limits.rows - self._window.rows
            self._window = self._window.add(predictions[:room], labels[:room])
            predictions, labels = predictions[room:], labels[room:]
            if self._window.rows == self.limits.rows:
                judgements.append(self._judge())
                self._window = Window()
        return judgements

    def start_at(self, version: int) -> None:
        """Judge another version, also an earlier one, from now on."""
        self._version, self._window, self._num_outside = version, Window(), 0

    def _judge(self) -> Judgement:
        reason = _outside(self._window, self.limits)
        if reason is None:
            self._num_outside, self.good = 0, self._version
            return Judgement(self._version, "good", "inside the limits")
        self._num_outside += 1
        if self._num_outside < self.limits.windows:
            return Judgement(self._version, "outside", reason)
        return Judgement(
            self._version, "bad", f"{reason}, in {self._num_outside} windows of {self.limits.rows:,} labels in a row"
        )


def _outside(window: Window, limits: GuardLimits) -> str | None:
    if math.isnan(window.log_loss) or math.isnan(window.predicted):
        return "predictions are not numbers"
    ne, calibration = window.ne, window.calibration
    if limits.max_ne is not None and ne is not None and ne > limits.max_ne:
        return f"normalized entropy {ne:.4f} above {limits.max_ne:g}"
    if limits.calibration is not None and calibration is not None and abs(calibration - 1) > limits.calibration:
        return f"calibration {calibration:.4f} not within {limits.calibration:g} of 1"
    return None
