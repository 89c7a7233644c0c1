"""`StepProgress`: tracks which operators of the steps in progress are done, running, or ready."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from headrace.scheduling.graph import Kind, Lane, Node, Operator, Start, matches

__all__ = ["StepProgress"]


@dataclass(slots=True)
class _Waiting:
    """A node that has not started, with the number of unmet needs of each of its starts."""

    node: Node
    num_missing: list[int]

    @property
    def is_ready(self) -> bool:
        return 0 in self.num_missing

    def starts(self) -> Iterator[Start]:
        """The starts whose needs are met."""
        return (start for start, missing in zip(self.node.starts, self.num_missing, strict=True) if not missing)


@dataclass(slots=True)
class _Step:
    """A step in progress."""

    nodes: list[Node]
    by_kind: dict[Kind, list[Operator]] = field(default_factory=dict)
    waiting: dict[Operator, _Waiting] = field(default_factory=dict)
    done: set[Operator] = field(default_factory=set)
    num_transfers: int = 0  # in flight


class StepProgress:
    """Tracks which operators may start. Updates are incremental, so an event costs only what it changes.

    Attributes:
        requested: The last batch that the caller has requested.
    """

    def __init__(self) -> None:
        self.requested = -1
        self._steps: dict[int, _Step] = {}
        self._next = 0
        self._waiters: dict[Operator, list[tuple[_Waiting, int]]] = {}
        self._ready: dict[Lane, dict[Operator, _Waiting]] = {lane: {} for lane in Lane}

    def add(self, batch: int, nodes: Sequence[Node]) -> None:
        """Add the operators of a batch that was read."""
        step = self._steps[batch] = _Step(sorted(nodes, key=lambda node: node.priority))
        self._next = batch + 1
        for node in step.nodes:
            step.by_kind.setdefault(node.operator.kind, []).append(node.operator)
        for node in step.nodes:
            waiting = step.waiting[node.operator] = _Waiting(node, [0] * len(node.starts))
            for number, start in enumerate(node.starts):
                for operator in {operator for need in start.needs for operator in self._open(need)}:
                    waiting.num_missing[number] += 1
                    self._waiters.setdefault(operator, []).append((waiting, number))
            if waiting.is_ready:
                self._ready[node.operator.kind.lane][node.operator] = waiting

    def request(self, batch: int) -> None:
        """Request training up to this batch."""
        while self.requested < batch:
            self.requested += 1
            self._wake(Operator(Kind.REQUEST, self.requested))

    def begin(self, operator: Operator) -> None:
        """Mark a ready operator as running."""
        step = self._steps[operator.batch]
        del step.waiting[operator], self._ready[operator.kind.lane][operator]
        step.num_transfers += operator.kind.lane is Lane.NETWORK

    def finish(self, operator: Operator) -> None:
        """Mark a running operator as done; a step is removed when all its operators are done."""
        self._steps[operator.batch].num_transfers -= operator.kind.lane is Lane.NETWORK
        self._end(operator)

    def drop(self, operator: Operator) -> None:
        """Drop an operator that is no longer needed, counting it as done."""
        step = self._steps[operator.batch]
        if step.waiting.pop(operator, None) is not None:
            self._ready[operator.kind.lane].pop(operator, None)
            self._end(operator)

    @property
    def is_empty(self) -> bool:
        """Whether no step is in progress."""
        return not self._steps

    def is_done(self, need: Operator) -> bool:
        """Whether all operators that a need covers are done; False for batches that were not read."""
        return need.batch < self._next and not any(True for _ in self._open(need))

    def has_idle_link(self, batch: int) -> bool:
        """Whether no transfer of a batch is in flight."""
        return not self._steps[batch].num_transfers

    def operators(self, kind: Kind, batch: int) -> Sequence[Operator]:
        """Operators of a kind in a step in progress, by priority."""
        step = self._steps.get(batch)
        return () if step is None else step.by_kind.get(kind, ())

    def ready(self, lane: Lane) -> list[tuple[Node, list[Start]]]:
        """Nodes that may start, by batch and priority, with the starts whose needs are met."""
        if not (ready := self._ready[lane]):
            return []
        found = sorted(ready.values(), key=lambda each: (each.node.operator.batch, each.node.priority))
        return [(each.node, list(each.starts())) for each in found]

    def next_ready(self, kind: Kind, batch: int) -> Operator | None:
        """The operator of a kind and batch with the smallest priority that has not started, if it is ready."""
        ready = self._ready[kind.lane]
        return next((operator for operator in self.operators(kind, batch) if operator in ready), None)

    def waiting_nodes(self, batch: int) -> Iterator[Node]:
        """Nodes of a step that have not started."""
        step = self._steps.get(batch)
        return iter(()) if step is None else (each.node for each in step.waiting.values())

    def _open(self, need: Operator) -> Iterable[Operator]:
        """The unfinished operators that a need covers."""
        if need.kind is Kind.REQUEST:
            return (need,) if need.batch > self.requested else ()
        step = self._steps.get(need.batch)
        if step is None:
            return ()
        return (
            operator
            for operator in step.by_kind.get(need.kind, ())
            if operator not in step.done and matches(need, operator)
        )

    def _end(self, operator: Operator) -> None:
        step = self._steps[operator.batch]
        step.done.add(operator)
        self._wake(operator)
        if len(step.done) == len(step.nodes):
            del self._steps[operator.batch]

    def _wake(self, operator: Operator) -> None:
        """Update nodes that wait for an operator."""
        for waiting, number in self._waiters.pop(operator, ()):
            waiting.num_missing[number] -= 1
            node = waiting.node.operator
            step = self._steps.get(node.batch)
            if not waiting.num_missing[number] and step is not None and node in step.waiting:
                self._ready[node.kind.lane][node] = waiting
