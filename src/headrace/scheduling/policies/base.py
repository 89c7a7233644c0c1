"""The protocol of scheduling policies, which build the operators of a step and choose the next feature operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from headrace.scheduling.cost import Costs
from headrace.scheduling.graph import Node, Operator

__all__ = ["Decision", "Policy", "PullStrategy", "SchedulerView", "StepContext", "nothing"]


@dataclass(frozen=True)
class StepContext:
    """The input for building the operators of a step.

    Attributes:
        batch: Batch number.
        num_groups: Number of feature groups; 1 if features are not split.
        store_waits: Whether the store holds a pull back until the push it must include is applied.
        num_cores: Number of feature operators that may run at once.
        costs: Cost estimates of operators.
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
        name: Name for messages.
        build: Builds all operators of a step except `read`. Equal contexts must give equal operators.
    """

    name: str
    build: Callable[[StepContext], Sequence[Node]]


@dataclass(frozen=True)
class Decision:
    """A feature operator to run, or None, with the reason.

    Attributes:
        operator: The operator, or None to run nothing.
        reason: The reason for this operator, or for none.
    """

    operator: Operator | None
    reason: str


def nothing(reason: str) -> Decision:
    """A decision to run no operator, with the reason."""
    return Decision(None, reason)


class SchedulerView(Protocol):
    """The scheduler state visible to policies; see `SchedulerState` for the members."""

    current: int

    @property
    def costs(self) -> Costs: ...

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
    """A scheduling policy: a pure function of the context and the view.

    Attributes:
        name: Name in job files.
        num_ahead: Number of batches after the next one to train that may be read and processed.
        strategies: Ways of building a step, the simplest last. If there are several, all are tried on the job, and the
            fastest is kept.
    """

    @property
    def name(self) -> str: ...

    @property
    def num_ahead(self) -> int: ...

    @property
    def strategies(self) -> Sequence[PullStrategy]: ...

    def num_workers(self, num_cores: int, free_cores: int) -> int:
        """Number of feature operators that may run at once.

        Args:
            num_cores: Number of all cores.
            free_cores: Number of cores that training work does not use now.
        """

    def choose(self, now: SchedulerView) -> Decision:
        """Choose the feature operator for a free core, or none.

        Called repeatedly until it chooses none or no core is free. The batch `now.current` must get its features
        eventually. Operators that training work yields to run without being chosen.
        """
