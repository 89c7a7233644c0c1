"""The protocol of a scheduling policy: how it builds the operators of a step, and which feature operator runs next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from headrace.scheduling.cost import Costs
from headrace.scheduling.graph import Node, Operator

__all__ = ["Decision", "Policy", "PullStrategy", "SchedulerView", "StepContext", "nothing"]


@dataclass(frozen=True)
class StepContext:
    """What the operators of a step are built from.

    Attributes:
        batch: Which batch.
        num_groups: Parts into which features can be split; 1 for none.
        store_waits: Whether the store holds a pull back until the push it must see is applied.
        num_cores: Feature operators that may run at once.
        costs: What operators took so far.
    """

    batch: int
    num_groups: int
    store_waits: bool
    num_cores: int
    costs: Costs


@dataclass(frozen=True)
class PullStrategy:
    """A way of building a step: how features are split, and when their rows are pulled.

    Attributes:
        name: For people.
        build: Gives all operators of a step but `read`. Equal contexts must give equal operators.
    """

    name: str
    build: Callable[[StepContext], Sequence[Node]]


@dataclass(frozen=True)
class Decision:
    """A feature operator to run, or nothing, and why.

    Attributes:
        operator: None for nothing.
        reason: Why this operator, or why nothing.
    """

    operator: Operator | None
    reason: str


def nothing(reason: str) -> Decision:
    """Run no operator, for this reason."""
    return Decision(None, reason)


class SchedulerView(Protocol):
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

    def is_applied(self, batch: int) -> bool: ...

    def is_running(self, batch: int) -> bool: ...

    def next_features(self, batch: int) -> Operator | None: ...

    def fits(self, operator: Operator) -> bool: ...


class Policy(Protocol):
    """Pure: everything it decides from is in the context or the view.

    Attributes:
        name: What a job file calls it.
        num_ahead: Batches behind the next to train that may be read and worked on.
        strategies: Ways of building a step, the plainest last. Several are tried on the job, and the fastest stays.
    """

    @property
    def name(self) -> str: ...

    @property
    def num_ahead(self) -> int: ...

    @property
    def strategies(self) -> Sequence[PullStrategy]: ...

    def num_workers(self, num_cores: int, free_cores: int) -> int:
        """Feature operators that may run at once.

        Args:
            num_cores: All cores.
            free_cores: Those that training work does not use now.
        """

    def choose(self, now: SchedulerView) -> Decision:
        """The feature operator for a free processor, or nothing.

        Called again until it says nothing or no processor is free. The batch `now.current` must get its features at
        some time; operators that training work yields to run without being chosen.
        """
