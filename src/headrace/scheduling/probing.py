"""`Probe`: finds out by measuring which way of computing features and sending pulls is fastest on this job."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Mode", "Probe", "distinct"]

PHASE_STEPS = 8
"""Steps of one trial."""

PASSES = 2
"""Trials of each mode, in turn: the speed of a machine that others share changes meanwhile."""

WARM_UP_STEPS = 10
"""At the beginning of a job, which belong to no trial: batches ahead have yet to be made."""

SKIPPED_STEPS = 4
"""Of a trial, at its start: batches that were read when the mode changed are still computed in the mode before."""

EVERY_STEPS = 512
"""Steps until all modes are tried again: one step in ten at most pays the difference."""

GAIN = 1.03
"""How much faster a mode must be than a plainer one: on a tie the plainer one is better."""


class Mode(NamedTuple):
    """A way of computing features and sending pulls.

    Attributes:
        early: Rows that no push on its way touches are asked for before that push is applied.
        ahead: Pulls are sent before the push they must see is applied, to a store that holds them back.
        by_group: A group is asked for alone where the link would rest otherwise.
        joint: The features of a batch are one operator, not one a group.
    """

    early: bool = False
    ahead: bool = False
    by_group: bool = False
    joint: bool = False


def distinct(modes: Sequence[Mode], *, num_groups: int, store_holds: bool) -> list[Mode]:
    """Modes that differ in effect; of those that are the same, the plainest.

    Args:
        modes: The plainest last.
        num_groups: Parts into which features can be split.
        store_holds: Whether the store holds pulls back.
    """
    split = num_groups > 1
    kept: dict[tuple[bool, ...], Mode] = {}
    for mode in reversed(modes):
        effect = (mode.early, mode.ahead and store_holds, split and mode.by_group, mode.joint or not split)
        kept.setdefault(effect, mode)
    return list(reversed(kept.values()))


class Probe:
    """Tries modes in turn on the job itself, and stays with the fastest.

    Early pulls take two requests, and their rows arrive while dense work runs; pulls by group take several; those sent
    ahead wait in the store. Each request costs processor time on both ends, and each group of features costs some by
    itself, which pays where the processor would rest otherwise, and not where it never does. Plain numbers, without a
    clock.
    """

    def __init__(self, modes: Sequence[Mode]) -> None:
        """Nothing is tried yet.

        Args:
            modes: The plainest last; the first trial is of the first.
        """
        self._modes = tuple(modes)
        self._num_unused = WARM_UP_STEPS
        self._now = 0
        self._trials: list[int] = []
        self._trial: list[float] = []
        self._seconds: list[list[float]] = []
        self._begin_trials()

    @property
    def mode(self) -> Mode:
        """What the next step is to do."""
        return self._modes[self._now]

    def learn(self, step_s: float) -> None:
        """A step has ended under the present mode."""
        if len(self._modes) == 1:
            return
        if self._num_unused:
            self._num_unused -= 1
            if not self._num_unused and not self._trials:
                self._begin_trials()
            return
        self._trial.append(step_s)
        if len(self._trial) < PHASE_STEPS:
            return
        self._seconds[self._trials.pop(0)] += self._trial[SKIPPED_STEPS:]
        self._trial = []
        if self._trials:
            self._now = self._trials[0]
        else:
            self._now, self._num_unused = self._fastest(), EVERY_STEPS

    def _begin_trials(self) -> None:
        self._trials = [*range(len(self._modes))] * PASSES
        self._seconds = [[] for _ in self._modes]
        self._trial = []
        self._now = 0

    def _fastest(self) -> int:
        medians = [statistics.median(seconds) for seconds in self._seconds]
        best = len(self._modes) - 1
        for mode in reversed(range(len(self._modes))):
            if medians[mode] * GAIN <= medians[best]:
                best = mode
        return best
