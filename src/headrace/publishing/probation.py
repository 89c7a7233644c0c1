"""`Probation`: which version a guard tries after a bad one, and when; without clocks or tables."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["Probation"]

LONGEST_BACK_OFF = 64
"""Versions, at most, between a bad one and the next that is tried: about a minute with one per second."""


@dataclass(frozen=True)
class Probation:
    """What a guard knows of bad versions, as values that a restart remembers::

        served:   3 good   4 bad   3 ...  5 on trial: bad   3 ...  7 on trial: bad   3 ...  11 on trial: good   12  13
        waits:                     1 version                2 versions               4 versions                 none

    Attributes:
        good: The version that is served while none is tried.
        bad: The newest version that was bad.
        num_bad: Bad versions in a row.
        on_trial: The version that is served until it is judged; 0 for none.
    """

    good: int
    bad: int
    num_bad: int = 1
    on_trial: int = 0

    @property
    def retry_from(self) -> int:
        """The first version that may be tried. Waits double, so that of many bad versions few are served."""
        return int(self.bad + min(LONGEST_BACK_OFF, 2 ** (self.num_bad - 1)))

    def can_try(self, newest: int) -> bool:
        """Whether the newest version is to be served on trial."""
        return not self.on_trial and newest >= self.retry_from

    def trying(self, version: int) -> Probation:
        """The state while a version is tried."""
        return replace(self, on_trial=version)

    def after_bad(self) -> Probation:
        """The state after the version on trial was bad, too."""
        return Probation(self.good, self.on_trial, self.num_bad + 1)

    def stopped(self) -> Probation:
        """The state without the trial, which a restart begins again."""
        return replace(self, on_trial=0)

    def __str__(self) -> str:
        if self.on_trial:
            return f"version {self.on_trial} is on trial; bad versions in a row: {self.num_bad}"
        return f"version {self.retry_from} or later is tried next; bad versions in a row: {self.num_bad}"
