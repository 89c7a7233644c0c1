"""`Probe`: finds out by measuring which way of computing features and sending pulls is fastest on this job."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple, Protocol

__all__ = ["Mode", "Probe", "distinct", "make_probe"]

MEASURED_STEPS = 4
"""Of a trial, at its end. Before them are those whose batches were already read when the mode changed: they are still
computed in the mode before."""

PASSES = 2
"""Trials of each mode, in turn: the speed of a machine that others share changes meanwhile."""

WARM_UP_STEPS = 10
"""At the beginning of a window, which belong to no trial: batches ahead have yet to be made."""

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


class Modal(Protocol):
    """What a probe asks of a policy."""

    @property
    def num_ahead(self) -> int: ...

    @property
    def modes(self) -> Sequence[Mode]: ...


def make_probe(policy: Modal, *, num_groups: int, store_holds: bool) -> Probe:
    """A probe of the ways a policy has on this job; see `distinct`."""
    modes = distinct(policy.modes, num_groups=num_groups, store_holds=store_holds)
    return Probe(modes, num_ahead=policy.num_ahead)


class Probe:
    """Tries modes in turn on the job itself, and stays with the fastest; it is kept over windows.

    Early pulls take two requests, and their rows arrive while dense work runs; pulls by group take several; those sent
    ahead wait in the store. Each request costs processor time on both ends, and each group of features costs some by
    itself, which pays where the processor would rest otherwise, and not where it never does. Plain numbers, without a
    clock.

    Attributes:
        modes: Those tried.
    """

    def __init__(self, modes: Sequence[Mode], *, num_ahead: int = 3) -> None:
        """Nothing is tried yet.

        Args:
            modes: The plainest last; the first trial is of the first.
            num_ahead: Batches that may be read behind the next to train.
        """
        self.modes = tuple(modes)
        self._num_skipped = num_ahead + 1
        self._num_warm_up, self._num_settled = WARM_UP_STEPS, 0
        self._now = 0
        self._trials: list[int] = []
        self._trial: list[float] = []
        self._seconds: list[list[float]] = []
        self._begin_trials()

    @property
    def mode(self) -> Mode:
        """What the next step is to do."""
        return self.modes[self._now]

    @property
    def num_steps(self) -> int:
        """From the beginning until the fastest is known."""
        if len(self.modes) == 1:
            return 0
        return WARM_UP_STEPS + PASSES * len(self.modes) * (self._num_skipped + MEASURED_STEPS)

    def begin(self) -> None:
        """A window begins: its first steps tell nothing, and the trial under way begins anew."""
        self._num_warm_up, self._trial = WARM_UP_STEPS, []

    def learn(self, step_s: float) -> None:
        """A step has ended under the present mode."""
        if len(self.modes) == 1:
            return
        if self._num_warm_up:
            self._num_warm_up -= 1
        elif self._trials:
            self._try(step_s)
        else:
            self._num_settled += 1
            if self._num_settled == EVERY_STEPS:
                self._begin_trials()

    def _try(self, step_s: float) -> None:
        self._trial.append(step_s)
        if len(self._trial) < self._num_skipped + MEASURED_STEPS:
            return
        self._seconds[self._trials.pop(0)] += self._trial[self._num_skipped :]
        self._trial = []
        if self._trials:
            self._now = self._trials[0]
        else:
            self._now, self._num_settled = self._fastest(), 0

    def _begin_trials(self) -> None:
        self._trials = [*range(len(self.modes))] * PASSES
        self._seconds = [[] for _ in self.modes]
        self._trial = []
        self._now = 0

    def _fastest(self) -> int:
        medians = [statistics.median(seconds) for seconds in self._seconds]
        best = len(self.modes) - 1
        for mode in reversed(range(len(self.modes))):
            if medians[mode] * GAIN <= medians[best]:
                best = mode
        return best
