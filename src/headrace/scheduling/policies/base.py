"""What a scheduling policy decides: which feature operator a free processor takes, and how freely pulls are sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from headrace.scheduling.cost import Costs
from headrace.scheduling.probing import Mode

__all__ = ["Choice", "Policy", "Situation", "nothing"]


@dataclass(frozen=True)
class Choice:
    """A feature operator, or nothing, and why.

    Attributes:
        batch: Its batch; -1 for nothing.
        group: Its group.
        reason: Why this, or why nothing.
    """

    batch: int
    group: int
    reason: str


def nothing(reason: str) -> Choice:
    """No operator, because."""
    return Choice(-1, -1, reason)


class Situation(Protocol):
    """What a policy may look at; see `SchedulerState` for the meaning of each."""

    costs: Costs
    current: int

    @property
    def training_first(self) -> bool: ...

    @property
    def gap_left_s(self) -> float: ...

    @property
    def cpu_bound(self) -> bool: ...

    @property
    def last_read(self) -> int: ...

    @property
    def num_running(self) -> int: ...

    def feeds_early_pull(self, batch: int) -> bool: ...

    def is_applied(self, batch: int) -> bool: ...

    def is_running(self, batch: int) -> bool: ...

    def has_begun(self, batch: int) -> bool: ...

    def next_group(self, batch: int) -> int | None: ...

    def fits(self, batch: int, group: int) -> bool: ...


class Policy(Protocol):
    """Pure: everything it knows is in the situation.

    Attributes:
        name: What a job file calls it.
        num_ahead: Batches behind the next to train that may be read and worked on.
        modes: Ways of computing features and sending pulls, the plainest last; of several the fastest stays.
    """

    @property
    def name(self) -> str: ...

    @property
    def num_ahead(self) -> int: ...

    @property
    def modes(self) -> Sequence[Mode]: ...

    def num_workers(self, num_cores: int, free_cores: int) -> int:
        """Feature operators that may run at once.

        Args:
            num_cores: All cores.
            free_cores: Those that training work does not use now.
        """

    def order(self, costs: Costs, num_cores: int) -> Sequence[int]:
        """All groups, those first whose features are to be computed first."""

    def choose(self, now: Situation) -> Choice:
        """The feature operator for a processor that is free, or nothing."""
