"""The operators of a training step as data: what each needs before it may start, and which resource it uses.

    read(b) ── features(b, g) ── pull(b, g) ─┐
                                              ├─ dense(b) ── push(b)
    read(b) ── features(b, h) ── pull(b, h) ─┘      │
                    push(b - 1) ──┘                 └─ update(b)

Letters: b numbers batches in the order in which they train, g and h are feature groups. A policy builds the operators
of each step (all but `read`) as a list of `Node`s; the scheduler knows nothing about a step but this list.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from typing import NamedTuple

__all__ = ["ALL_GROUPS", "WHOLE", "Kind", "Lane", "Node", "Operator", "Part", "Start", "check_step", "matches"]

ALL_GROUPS = -1
"""All feature groups of a batch: as one operator, or, in a need, all operators of a kind."""


class Part(NamedTuple):
    """A micro-batch: rows `number * B // of` to `(number + 1) * B // of` of a batch of B rows."""

    number: int
    of: int

    def rows(self, num_rows: int) -> range:
        """Its rows in a batch."""
        return range(self.number * num_rows // self.of, (self.number + 1) * num_rows // self.of)


WHOLE = Part(0, 1)
"""All rows of a batch; in a need, operators of any part."""


class Lane(Enum):
    """The resource that an operator uses."""

    __hash__ = object.__hash__

    READER = "reader"
    """One thread that takes batches of rows from the pipeline, in order."""
    CPU = "cpu"
    """Background threads, one operator each."""
    TRAINER = "trainer"
    """The caller's thread; its operators may use all cores."""
    NETWORK = "network"
    """The embedding store: transfers run side by side, on no thread of the scheduler."""


class Kind(Enum):
    """What an operator does.

    Attributes:
        value: Its name.
        lane: The resource it uses.
    """

    lane: Lane
    __hash__ = object.__hash__  # members are compared by identity; Enum hashes names, in Python, some 100 times a step

    def __new__(cls, name: str, lane: Lane) -> Kind:
        kind = object.__new__(cls)
        kind._value_, kind.lane = name, lane
        return kind

    READ = "read", Lane.READER
    """Takes the rows of a batch from the pipeline."""
    FEATURES = "features", Lane.CPU
    """Computes features and their unique keys."""
    PULL = "pull", Lane.NETWORK
    """Reads the rows of keys from the store; an early pull only those of keys that no push on its way touches."""
    DEFERRED_PULL = "deferred_pull", Lane.NETWORK
    """Reads what an early pull left out, once the push before is applied."""
    DENSE = "dense", Lane.TRAINER
    """Forward and backward pass; those of micro-batches add up their gradients."""
    PUSH = "push", Lane.NETWORK
    """Sends the gradients of the batch's keys as one update of the store; done when it is applied."""
    UPDATE = "update", Lane.TRAINER
    """The optimizer step of the dense parameters; ends the batch."""
    REQUEST = "request", Lane.TRAINER
    """The caller asks for the batch to be trained. Only needs name it: it happens outside of the step."""


class Operator(NamedTuple):
    """The identity of an operator, and in a need, of all operators that it covers.

    Attributes:
        kind: What it does.
        batch: For which batch, counted from 0 in the order of training.
        group: For which feature group.
        part: For which rows.
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
    """Whether a need covers an operator: of the same kind and batch, and of the group and part it names, if any."""
    return (
        need.kind is operator.kind
        and need.batch == operator.batch
        and need.group in (ALL_GROUPS, operator.group)
        and need.part in (WHOLE, operator.part)
    )


@dataclass(frozen=True)
class Start:
    """One set of conditions under which an operator may start.

    Attributes:
        needs: Operators of this batch or earlier ones that must be done.
        reason: Why it starts then; for the trace.
        after: For a pull: the batch whose push its rows must have seen. A push that is not among the needs is one that
            the store waits for.
        defers: For a pull: keys that the batch before touches are left to the `DEFERRED_PULL` of the same group and
            part. A pull that starts without deferring has all rows, and its deferred pull is dropped.
        only_if_idle: Only while the network carries nothing else of this batch.
    """

    needs: tuple[Operator, ...] = ()
    reason: str = ""
    after: int = -1
    defers: bool = False
    only_if_idle: bool = False


@dataclass(frozen=True)
class Node:
    """An operator in the graph of a step. Its kind gives the resource it uses.

    Attributes:
        operator: Which.
        starts: It may start as soon as one of these holds; of several, the first counts.
        priority: Of the operators of a batch that wait for the same resource, the smallest goes first.
        yields_to: Operators, also of the next batch, that go first if they run already, or can and fit the budget.
    """

    operator: Operator
    starts: tuple[Start, ...] = (Start(),)
    priority: int = 0
    yields_to: tuple[Operator, ...] = ()


def check_step(nodes: Sequence[Node], batch: int, num_groups: int) -> None:
    """Check what a policy has built.

    Args:
        nodes: The operators of one step.
        batch: Its batch.
        num_groups: Parts into which features can be split.

    Raises:
        ValueError: An operator is missing, there twice, of another batch, or needs something that never happens; names
            the operator.
    """
    operators = [node.operator for node in nodes]
    for operator in operators:
        if operators.count(operator) > 1:
            raise ValueError(f"{operator}: built twice")
        if operator.batch != batch or operator.kind in (Kind.READ, Kind.REQUEST):
            raise ValueError(f"{operator}: not an operator of the step of batch {batch}")
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
            raise ValueError(f"{stuck}: can never start; they need operators that are not in the step, or each other")
        done.update(node.operator for node in able)
        waiting = [node for node in waiting if node.operator not in done]


def _check_cover(kind: Kind, operators: Iterable[Operator], num_groups: int) -> None:
    """Whether operators together have every group of every row once."""
    covered = [Fraction(0)] * num_groups
    for _, _, group, part in operators:
        for each in range(num_groups) if group == ALL_GROUPS else (group,):
            covered[each] += Fraction(1, part.of)
    if any(share != 1 for share in covered):
        raise ValueError(f"{kind.value}: expected operators that have every feature group and every row once")


def _can_start(start: Start, batch: int, operators: Sequence[Operator], done: set[Operator]) -> bool:
    for need in start.needs:
        if need.batch > batch:
            return False
        if need.batch == batch and need.kind is not Kind.REQUEST:
            covered = [operator for operator in operators if matches(need, operator)]
            if not covered or not done.issuperset(covered):
                return False
    return True
