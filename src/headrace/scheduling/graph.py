"""The operators of a training step as data: their dependencies and the resources they use.

    read(b) ── features(b, g) ── pull(b, g) ─┐
                                              ├─ dense(b) ── push(b)
    read(b) ── features(b, h) ── pull(b, h) ─┘      │
                    push(b - 1) ──┘                 └─ update(b)

Here b is a batch number in training order, and g and h are feature groups. A policy builds the operators of each step
(except `read`) as a list of `Node`s, and the scheduler knows nothing else about a step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from fractions import Fraction
from typing import NamedTuple

__all__ = [
    "ALL_GROUPS",
    "WHOLE",
    "Kind",
    "Lane",
    "Node",
    "Operator",
    "Part",
    "Start",
    "check_step",
    "hold_transfers",
    "matches",
]

ALL_GROUPS = -1
"""All feature groups of a batch. In a need: operators of any group."""


class Part(NamedTuple):
    """A micro-batch: rows `number * B // of` to `(number + 1) * B // of` of a batch of B rows."""

    number: int
    of: int

    def rows(self, num_rows: int) -> range:
        """The part's rows in a batch of `num_rows` rows."""
        return range(self.number * num_rows // self.of, (self.number + 1) * num_rows // self.of)


WHOLE = Part(0, 1)
"""All rows of a batch. In a need: operators of any part."""


class Lane(Enum):
    """The resource that an operator uses."""

    __hash__ = object.__hash__

    READER = "reader"
    """A thread that takes batches of rows from the pipeline, in order."""
    CPU = "cpu"
    """Background threads, each running one operator at a time."""
    TRAINER = "trainer"
    """The caller's thread; its operators may use all cores."""
    NETWORK = "network"
    """The embedding store: transfers run concurrently, without threads of the scheduler."""


class Kind(Enum):
    """The kind of an operator.

    Attributes:
        value: Name of the kind.
        lane: Resource that it uses.
    """

    lane: Lane
    __hash__ = object.__hash__  # by identity; Enum would hash names in Python, about 100 times per step

    def __new__(cls, name: str, lane: Lane) -> Kind:
        kind = object.__new__(cls)
        kind._value_, kind.lane = name, lane
        return kind

    READ = "read", Lane.READER
    """Takes the rows of a batch from the pipeline."""
    FEATURES = "features", Lane.CPU
    """Computes features and their unique keys."""
    PULL = "pull", Lane.NETWORK
    """Reads rows from the store; an early pull reads only rows that no push in flight touches."""
    DEFERRED_PULL = "deferred_pull", Lane.NETWORK
    """Reads the rows that an early pull skipped, after the previous push is applied."""
    DENSE = "dense", Lane.TRAINER
    """Forward and backward pass; gradients of micro-batches accumulate."""
    PUSH = "push", Lane.NETWORK
    """Sends the gradients of the batch's keys as one update of the store; finished when it is applied."""
    UPDATE = "update", Lane.TRAINER
    """Runs the optimizer of the dense parameters; ends the batch."""
    REQUEST = "request", Lane.TRAINER
    """The caller's request to train the batch. It only occurs in needs, because it happens outside of the step."""


class Operator(NamedTuple):
    """Identifies an operator, or in a need, all operators that it covers.

    Attributes:
        kind: Kind of the operator.
        batch: Batch number, counted from 0 in training order.
        group: Feature group.
        part: Part of the batch's rows.
    """

    kind: Kind
    batch: int
    group: int = ALL_GROUPS
    part: Part = WHOLE

    def __str__(self) -> str:
        place = [f"{self.batch}"]
        place += [f"{self.group}"] if self.group != ALL_GROUPS else []
        place += [f"part {self.part.number + 1} of {self.part.of}"] if self.part != WHOLE else []
        return f"{self.kind.value}({', '.join(place)})"


def matches(need: Operator, operator: Operator) -> bool:
    """Whether a need covers an operator: same kind and batch, and the need's group and part, if given."""
    return (
        need.kind is operator.kind
        and need.batch == operator.batch
        and need.group in (ALL_GROUPS, operator.group)
        and need.part in (WHOLE, operator.part)
    )


@dataclass(frozen=True)
class Start:
    """A set of conditions under which an operator may start.

    Attributes:
        needs: Operators of this batch or earlier ones that must be finished.
        reason: Reason for starting, for the trace.
        after: For a pull: the batch whose push its rows must include. If that push is not among the needs, the store
            waits for it.
        defers: For a pull: whether keys that the previous batch touches are left to the `DEFERRED_PULL` of the same
            group and part. If a pull starts without deferring, it reads all rows, and its deferred pull is dropped.
        only_if_idle: Whether it may start only while no other transfer of this batch is in flight.
    """

    needs: tuple[Operator, ...] = ()
    reason: str = ""
    after: int = -1
    defers: bool = False
    only_if_idle: bool = False


@dataclass(frozen=True)
class Node:
    """An operator in the graph of a step.

    Attributes:
        operator: The operator; its kind determines the resource.
        starts: Alternative start conditions; the first one that holds is used.
        priority: Order among operators of a batch that wait for the same resource; the smallest goes first.
        yields_to: Operators, possibly of the next batch, that go first if they are running, or can run and fit the
            budget.
    """

    operator: Operator
    starts: tuple[Start, ...] = (Start(),)
    priority: int = 0
    yields_to: tuple[Operator, ...] = ()


def hold_transfers(nodes: Iterable[Node], need: Operator) -> list[Node]:
    """The same operators, with transfers that also depend on one more operator."""
    return [
        replace(node, starts=tuple(replace(start, needs=(*start.needs, need)) for start in node.starts))
        if node.operator.kind.lane is Lane.NETWORK
        else node
        for node in nodes
    ]


def check_step(nodes: Sequence[Node], batch: int, num_groups: int) -> None:
    """Check the operators that a policy has built.

    Args:
        nodes: Operators of one step.
        batch: Batch of the step.
        num_groups: Number of feature groups.

    Raises:
        ValueError: An operator is missing, duplicated, of another batch, or has needs that can never be met; the
            message names it.
    """
    operators = [node.operator for node in nodes]
    for operator in operators:
        if operators.count(operator) > 1:
            raise ValueError(f"{operator}: built twice")
        if operator.batch != batch or operator.kind in (Kind.READ, Kind.REQUEST):
            raise ValueError(f"{operator}: does not belong to the step of batch {batch}")
    for kind in (Kind.FEATURES, Kind.PULL):
        _check_cover(kind, [operator for operator in operators if operator.kind is kind], num_groups)
    _check_cover(Kind.DENSE, [operator for operator in operators if operator.kind is Kind.DENSE], 1)
    for kind in (Kind.PUSH, Kind.UPDATE):
        if operators.count(Operator(kind, batch)) != 1 or sum(each.kind is kind for each in operators) != 1:
            raise ValueError(f"{Operator(kind, batch)}: expected once, for the whole batch")
    done: set[Operator] = set()
    waiting = list(nodes)
    while waiting:
        able = [node for node in waiting if any(_can_start(start, batch, operators, done) for start in node.starts)]
        if not able:
            stuck = ", ".join(str(node.operator) for node in waiting)
            raise ValueError(f"{stuck}: can never start, because they need each other or operators outside of the step")
        done.update(node.operator for node in able)
        waiting = [node for node in waiting if node.operator not in done]


def _check_cover(kind: Kind, operators: Iterable[Operator], num_groups: int) -> None:
    """Check that operators together cover every group of every row exactly once."""
    covered = [Fraction(0)] * num_groups
    for _, _, group, part in operators:
        for each in range(num_groups) if group == ALL_GROUPS else (group,):
            covered[each] += Fraction(1, part.of)
    if any(share != 1 for share in covered):
        raise ValueError(f"{kind.value}: expected operators that cover every feature group and every row exactly once")


def _can_start(start: Start, batch: int, operators: Sequence[Operator], done: set[Operator]) -> bool:
    for need in start.needs:
        if need.batch > batch:
            return False
        if need.batch == batch and need.kind is not Kind.REQUEST:
            covered = [operator for operator in operators if matches(need, operator)]
            if not covered or not done.issuperset(covered):
                return False
    return True
