"""`Probe`: finds out by measuring which way of computing features and sending pulls is fastest on this job."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Mode", "Probe"]

PHASE_STEPS = 10
"""Steps of one trial."""

WARM_UP_STEPS = 10
"""At the beginning of a job, which belong to no trial: batches ahead have yet to be made."""

SKIPPED_STEPS = 4
"""Of a trial, at its start: batches that were read when the mode changed are still computed in the mode before."""

EVERY_STEPS = 256
"""Steps until the modes that lost are tried again: one step in twenty at most pays the difference."""

GAIN = 1.03
"""How much faster a mode must be than a plainer one: on a tie the plainer one is better."""


class Mode(NamedTuple):
    """A way of computing features and sending pulls.

    Attributes:
        early: Rows that no push on its way touches are asked for before that push is applied.
        by_group: A group is asked for alone where the link would rest otherwise.
        joint: The features of a batch are one operator, not one a group.
    """

    early: bool = False
    by_group: bool = False
    joint: bool = False


class Probe:
    """Tries modes in turn on the job itself, and stays with the fastest.

    Early pulls take two requests, and their rows arrive while dense work runs; pulls by group take several. Each
    request costs processor time on both ends, and each group of features costs some by itself, which pays where the
    processor would rest otherwise, and not where it never does. Plain numbers, without a clock.
    """

    def __init__(self, modes: Sequence[Mode], *, num_groups: int) -> None:
        """Nothing is tried yet.

        Args:
            modes: The plainest last; the first trial is of the first.
            num_groups: Parts into which features can be split; where there is one, modes that differ only in the use
                of groups are the same.
        """
        self._modes = tuple(modes if num_groups > 1 else {mode.early: mode for mode in modes}.values())
        self._now = 0
        self._untried = list(range(len(self._modes)))
        self._seconds: dict[int, float] = {}
        self._trial: list[float] = []
        self._num_unused = WARM_UP_STEPS

    @property
    def mode(self) -> Mode:
        """What the next step is to do."""
        return self._modes[self._now]

    def learn(self, step_s: float) -> None:
        """A step has ended under the present mode."""
        if self._num_unused or len(self._modes) == 1:
            self._num_unused = max(0, self._num_unused - 1)
            return
        self._trial.append(step_s)
        if len(self._trial) < (PHASE_STEPS if self._untried else EVERY_STEPS):
            return
        self._seconds[self._now] = statistics.median(self._trial[SKIPPED_STEPS:][-4 * PHASE_STEPS :])
        self._trial = []
        if not self._untried:
            self._untried = [mode for mode in range(len(self._modes)) if mode != self._now]
        elif self._now in self._untried:
            self._untried.remove(self._now)
        self._now = self._untried[0] if self._untried else self._fastest()

    def _fastest(self) -> int:
        best = len(self._modes) - 1
        for mode in reversed(range(len(self._modes))):
            if self._seconds[mode] * GAIN <= self._seconds[best]:
                best = mode
        return best
