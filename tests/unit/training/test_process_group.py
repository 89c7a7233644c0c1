"""Counts of several trainers come together at trainer 0, and are counted once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.pipeline import RowStats
from headrace.training.process_group import SingleProcess
from headrace.training.state import TrainingState


class Two(SingleProcess):
    """One of two trainers; what the other counts is given."""

    size = 2

    def __init__(self, rank: int, other: list[NDArray[Any]]) -> None:
        self.rank = rank
        self._other = other

    def total(self, arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        return [mine + theirs for mine, theirs in zip(arrays, self._other, strict=True)]


def state_with(rows: int, seed: int) -> TrainingState:
    state, rng = TrainingState(("click",), baseline_name="age"), np.random.default_rng(seed)
    logits, labels = rng.normal(size=(rows, 1)), rng.integers(0, 2, (rows, 1))
    state.update_metrics(logits.astype(np.float32), labels.astype(np.float32), None)
    state.update_baseline(logits[:, 0].astype(np.float32), labels[:, 0].astype(np.float32), None)
    state.count(RowStats(num_used=rows), 1.0)
    return state


def test_trainer_0_has_the_sum_and_the_others_begin_anew() -> None:
    both = state_with(30, 1)
    other = state_with(20, 2)
    both.running["click"].merge(other.running["click"])
    counts = [np.array([20, 20, 0, 0, 0.0])] * 2
    assert other.running_baseline is not None
    for metric in (other.running["click"], other.in_window["click"], other.baseline, other.running_baseline):
        counts += metric.state_dict().values()
    first, second = state_with(30, 1), state_with(20, 2)
    first.gather(Two(0, counts))
    second.gather(Two(1, counts))
    assert first.rows == RowStats(num_used=50)
    assert first.running["click"].compute() == both.running["click"].compute()
    assert first.running_baseline is not None
    assert first.running_baseline.compute() == both.running["click"].compute()
    assert second.rows == RowStats()
    assert second.running["click"].compute().rows == 0


def test_alone_nothing_moves() -> None:
    state = state_with(30, 1)
    state.gather(SingleProcess())
    assert state.rows.num_used == 30
    assert SingleProcess().share({"a": 1}) == {"a": 1}
    assert SingleProcess().average([], 3, wants_stop=True) == (True, 3)
