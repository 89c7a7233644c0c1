"""`Probe`: finds out by measuring whether early pulls pay, and asks again from time to time."""

from __future__ import annotations

import statistics

__all__ = ["Probe"]

PHASE_STEPS = 6
"""Steps of one trial."""

SKIPPED_STEPS = 2
"""Of a trial, at its start: what was under way when the mode changed belongs to the mode before."""

EVERY_STEPS = 256
"""Steps until the mode that lost is tried again: costs one step in forty the difference."""

GAIN = 1.02
"""How much faster early pulls must be: on a tie the plainer way is better."""


class Probe:
    """Early pulls ask for rows in two requests and receive them while dense work runs, which costs processor time.

    That pays where the processor would rest otherwise, and not where it never does; so both are tried, on the job
    itself. Plain numbers, without a clock.

    Attributes:
        early: What the next step is to do.
    """

    def __init__(self) -> None:
        """Both are untried; the first trial is of early pulls."""
        self.early = True
        self._seconds: dict[bool, float] = {}
        self._trial: list[float] = []
        self._is_settled = False

    def learn(self, step_s: float) -> None:
        """A step has ended under the present mode."""
        self._trial.append(step_s)
        if len(self._trial) < (EVERY_STEPS if self._is_settled else PHASE_STEPS):
            return
        latest = self._trial[SKIPPED_STEPS:][-4 * PHASE_STEPS :]
        self._seconds[self.early] = statistics.median(latest)
        self._trial = []
        if self._is_settled or len(self._seconds) < 2:  # the other one's turn
            self.early, self._is_settled = not self.early, False
            return
        self.early = self._seconds[True] * GAIN <= self._seconds[False]
        self._is_settled = True
