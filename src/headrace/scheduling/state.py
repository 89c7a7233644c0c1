"""State machine of scheduled steps: it turns events into instructions with reasons, without threads or clocks.

The driver reports events (`BatchRead`, `Finished`, ...) with times, and executes every returned `Run`. Batches come in
segments, and the caller does other work between two segments. It signals the end of this work by requesting the first
batch of the next segment. The operators that the policy built for each step determine what may run; resources determine
what does run:

- the network carries every transfer that may start;
- the trainer's thread runs one operator at a time, of batches that the caller has asked for;
- feature operators run on the cores assigned by the policy, which also chooses their order;
- work on later batches starts only if its bytes fit the budget; the next batch to train always proceeds;
- transfers for a segment start once the caller is in it; its rows may be read and its features computed before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from headrace.scheduling.cost import ByteBudget, Costs
from headrace.scheduling.events import BatchRead, Event, Finished, OperatorFailed, Run, SegmentRead, StepRequested
from headrace.scheduling.graph import Kind, Lane, Node, Operator, Start, hold_transfers
from headrace.scheduling.policies.base import Decision, Policy, StepContext
from headrace.scheduling.progress import StepProgress
from headrace.scheduling.selection import StrategySelector, make_selector

__all__ = ["SchedulerState"]

KEPT = {Kind.READ, Kind.FEATURES, Kind.PULL}
"""Operators whose bytes count toward the budget."""

CPU_BOUND_RATIO = 0.95
"""Feature work counts as filling the gap within this factor, the precision of estimates."""


@dataclass(frozen=True)
class _Experience:
    """Measurements of steps with a given number of feature groups."""

    costs: Costs
    selector: StrategySelector


@dataclass
class _Live:
    """A batch that was read but not trained yet."""

    segment: int
    costs: Costs
    num_bytes: int = 0


class SchedulerState:
    """Decides which operators run when. Not thread-safe; the driver holds a lock.

    Attributes:
        policy: Builds steps, and decides which features run next.
        num_cores: Maximum number of concurrent feature operators while no training work runs.
        spare_cores: The same while training work runs; the cores that dense operators do not use.
        store_waits: Whether the store delays a pull until the push that it must include is applied.
        bytes: Bytes of batches that were read but not trained yet.
        current: The next batch to train, or the one in training.
        idle_reason: Reason why idle cores have no work.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        num_cores: int = 1,
        spare_cores: int = 0,
        store_waits: bool = False,
        budget_bytes: int = 1 << 62,
        num_segments: int = 1,
        selectors: Mapping[int, StrategySelector] | None = None,
    ) -> None:
        """Start before the first batch.

        Args:
            policy: See the attribute.
            num_cores: See the attribute.
            spare_cores: See the attribute.
            store_waits: See the attribute.
            budget_bytes: Memory budget for batches that were read but not trained yet.
            num_segments: Number of segments.
            selectors: Measurements of strategies from an earlier run of the same job, by number of feature groups.
        """
        self.policy = policy
        self.num_cores = num_cores
        self.spare_cores = spare_cores
        self.store_waits = store_waits
        self.bytes = ByteBudget(budget_bytes)
        self.current = 0
        self.idle_reason = ""
        self.now_s = 0.0
        self._progress = StepProgress()
        self._asked = StepRequested(-1, 0.0)  # the newest request
        self._num_segments = num_segments
        self._segment = self._segment_start = 0  # the segment being read, and its first batch
        self._live: dict[int, _Live] = {}
        self._next_read = 0
        self._reading = False
        self._trainer_busy = False
        self._running: list[Operator] = []  # running feature operators
        self._features: Sequence[Operator] = ()  # of the newest step
        self._gap_start_s: float | None = None
        self._step_end_s: float | None = None
        self._experience = {number: _Experience(Costs(number), known) for number, known in (selectors or {}).items()}
        self._newest_costs = Costs(1)

    # Events

    def handle(self, *events: Event) -> list[Run]:
        """Process concurrent events; returns the instructions to execute now, in order."""
        for event in events:
            self._note(event)
        return list(self._decide())

    def _note(self, event: Event) -> None:
        self.now_s = event.at_s
        match event:
            case BatchRead():
                self._read(event)
            case SegmentRead():
                self._reading = False
                self.bytes.give_back(Operator(Kind.READ, self._next_read))
                self._segment, self._segment_start = self._segment + 1, self._next_read
            case StepRequested():
                self._request(event)
            case Finished():
                self._finish(event)
            case OperatorFailed():
                self.bytes.give_back(event.operator)
                if event.operator.kind is Kind.FEATURES:
                    self._running.remove(event.operator)

    def segment_of(self, batch: int) -> int:
        """The segment of a batch that is not trained yet, or is read next."""
        live = self._live.get(batch)
        return self._segment if live is None else live.segment

    @property
    def is_over(self) -> bool:
        """Whether the caller requests a batch of a segment without further batches, and all updates are applied."""
        asked = self._asked
        return (
            asked.segment < self._segment
            and asked.batch == self.current
            and asked.segment < self.segment_of(asked.batch)
            and self.is_applied(asked.batch - 1)
        )

    def _request(self, event: StepRequested) -> None:
        if event.segment > self._asked.segment:  # the caller's work in between is not part of a step
            self._gap_start_s = self._step_end_s = None
            for known in self._experience.values():
                known.selector.begin()
        self._asked = event
        self._grant()

    def _grant(self) -> None:
        """Accept the request once its batch is known to be in the caller's segment."""
        live = self._live.get(self._asked.batch)
        if live is not None and live.segment == self._asked.segment:
            self._progress.request(self._asked.batch)

    def _read(self, event: BatchRead) -> None:
        batch, known = self._next_read, self._known(event.num_groups)
        self._reading = False
        self._next_read += 1
        self._newest_costs = known.costs
        self._live[batch] = _Live(self._segment, known.costs)
        self._grant()
        step = StepContext(batch, event.num_groups, self.store_waits, self.num_cores, known.costs)
        nodes = known.selector.strategy.build(step)
        if self._progress.requested < self._segment_start:
            nodes = hold_transfers(nodes, Operator(Kind.REQUEST, self._segment_start))
        self._progress.add(batch, nodes)
        self._features = self._progress.operators(Kind.FEATURES, batch)
        self._settle(Operator(Kind.READ, batch), event.seconds, event.num_bytes)

    def _known(self, num_groups: int) -> _Experience:
        if num_groups not in self._experience:
            selector = make_selector(
                self.policy, num_groups=num_groups, store_waits=self.store_waits, num_cores=self.num_cores
            )
            self._experience[num_groups] = _Experience(Costs(num_groups), selector)
        return self._experience[num_groups]

    def _finish(self, event: Finished) -> None:
        operator = event.operator
        self._progress.finish(operator)
        match operator.kind:
            case Kind.FEATURES:
                self._running.remove(operator)
            case Kind.DENSE:
                self._trainer_busy = False
            case Kind.UPDATE:
                self._trainer_busy = False
                self._end_batch(operator.batch)
        if operator.kind is Kind.DENSE and self._progress.is_done(Operator(Kind.DENSE, operator.batch)):
            self._gap_start_s = self.now_s
        elif self._gap_start_s is not None and self._next_training(Kind.DENSE) is not None:
            self.costs.gap_s.add(self.now_s - self._gap_start_s)
            self._gap_start_s = None
        self._settle(operator, event.seconds, event.num_bytes)

    def _end_batch(self, number: int) -> None:
        assert number == self.current, f"update of batch {number} while {self.current} is in training"
        live = self._live.pop(number)
        self.bytes.ledger.add(-live.num_bytes)
        self.current += 1
        if self._step_end_s is not None:
            self._experience[live.costs.num_groups].selector.learn(self.now_s - self._step_end_s)
        self._step_end_s = self.now_s

    def _settle(self, operator: Operator, seconds: float, num_bytes: int) -> None:
        """Replace an operator's expected cost by the measured one."""
        self._costs_of(operator.batch).learn(operator, seconds, num_bytes)
        self.bytes.give_back(operator)
        live = self._live.get(operator.batch)
        if operator.kind in KEPT and live is not None:
            live.num_bytes += num_bytes
            self.bytes.ledger.add(num_bytes)

    def _costs_of(self, batch: int) -> Costs:
        live = self._live.get(batch)
        return self._newest_costs if live is None else live.costs

    # For policies

    @property
    def costs(self) -> Costs:
        """Measured costs of operators in steps like that of the next batch to train."""
        return self._costs_of(self.current)

    @property
    def training_first(self) -> bool:
        """Whether training work runs or could run."""
        if self._trainer_busy:
            return True
        return self._progress.requested >= self.current and self._next_training() is not None

    @property
    def gap_left_s(self) -> float:
        """Predicted time in seconds until training work is ready; infinite while the caller is between two segments."""
        if self.is_over:
            return math.inf
        if self._gap_start_s is None:
            return 0.0
        return self._gap_start_s + self.costs.gap_s.value - self.now_s

    @property
    def cpu_bound(self) -> bool:
        """Whether the feature work of a step takes at least as long as the gap in which it could be hidden.

        Then cores should never be idle, because the work must be done anyway and nothing else takes longer. (If
        features run inside the gap, the gap is as long as they are.)
        """
        costs = self._newest_costs
        features_s = sum(costs.seconds(kind, group, part) for kind, _, group, part in self._features)
        return features_s / self.num_cores >= CPU_BOUND_RATIO * costs.gap_s.value

    @property
    def last_read(self) -> int:
        """The newest batch whose rows have been read."""
        return self._next_read - 1

    def is_applied(self, batch: int) -> bool:
        """Whether the push of a batch is applied."""
        return self._progress.is_done(Operator(Kind.PUSH, batch))

    def is_running(self, batch: int) -> bool:
        """Whether a feature operator of a batch is running."""
        return any(operator.batch == batch for operator in self._running)

    def next_features(self, batch: int) -> Operator | None:
        """The first feature operator of a batch, by priority, that may start; None if there is none or rows are
        missing."""
        return self._progress.next_ready(Kind.FEATURES, batch)

    def fits(self, operator: Operator) -> bool:
        """Whether the bytes of an operator fit the budget."""
        return operator.batch == self.current or self.bytes.fits(operator, self._costs_of(operator.batch))

    # Instructions

    def _decide(self) -> Iterator[Run]:
        yield from self._transfers()
        yield from self._training()
        yield from self._reads()
        yield from self._feature_work()

    def _transfers(self) -> Iterator[Run]:
        ready = self._progress.ready(Lane.NETWORK)
        idle = {node.operator.batch for node, _ in ready if self._progress.has_idle_link(node.operator.batch)}
        for node, starts in ready:
            operator = node.operator
            start = next((each for each in starts if not each.only_if_idle or operator.batch in idle), None)
            if start is None:
                continue
            self._begin(operator)
            if operator.kind is Kind.PULL and not start.defers:
                self._progress.drop(operator._replace(kind=Kind.DEFERRED_PULL))
            yield Run(operator, start.reason, start.after, start.defers)

    def _training(self) -> Iterator[Run]:
        if self._trainer_busy or self._progress.requested < self.current:
            return
        found = self._next_training()
        if found is not None:
            node, start = found
            self._trainer_busy = True
            self._begin(node.operator)
            yield Run(node.operator, start.reason)

    def _next_training(self, kind: Kind | None = None) -> tuple[Node, Start] | None:
        """The operator for the trainer's thread, if it may start; it yields to features that run or can run."""
        ready = self._progress.ready(Lane.TRAINER)
        if not ready:
            return None
        node, starts = ready[0]
        operator = node.operator
        if operator.batch != self.current or kind not in (None, operator.kind):
            return None
        yields = any(self.is_running(need.batch) or self._able(need) is not None for need in node.yields_to)
        return None if yields else (node, starts[0])

    def _reads(self) -> Iterator[Run]:
        ahead = self._next_read - self.current
        operator = Operator(Kind.READ, self._next_read)
        if self._reading or self._segment == self._num_segments or ahead > self.policy.num_ahead:
            return
        if ahead > 0 and not self.bytes.fits(operator, self._newest_costs):
            return
        self._reading = True
        self.bytes.reserve(operator, self._newest_costs)
        yield Run(operator, "the next to train" if ahead == 0 else f"{ahead} ahead, within the budget")

    def _feature_work(self) -> Iterator[Run]:
        while True:
            most = self.policy.num_workers(self.num_cores, self.spare_cores if self.training_first else self.num_cores)
            if len(self._running) >= most:
                self.idle_reason = "all cores at work" if most else "training work comes first"
                return
            decision = self.policy.choose(self)
            if decision.operator is None and (awaited := self._awaited_features()) is not None:
                decision = Decision(awaited, "training work waits for it")
            if decision.operator is None:
                self.idle_reason = decision.reason
                return
            self._running.append(decision.operator)
            self._begin(decision.operator)
            yield Run(decision.operator, decision.reason)

    def _awaited_features(self) -> Operator | None:
        """The first feature operator that training work yields to and that may start and fits; None if there is
        none."""
        needs = (need for node in self._progress.waiting_nodes(self.current) for need in node.yields_to)
        return next((operator for need in needs if (operator := self._able(need)) is not None), None)

    def _able(self, need: Operator) -> Operator | None:
        """A feature operator covered by a dependency that may start now."""
        operator = self._progress.next_ready(Kind.FEATURES, need.batch) if need.kind is Kind.FEATURES else None
        return operator if operator is not None and self.fits(operator) else None

    def _begin(self, operator: Operator) -> None:
        self._progress.begin(operator)
        if operator.kind in KEPT:
            self.bytes.reserve(operator, self._costs_of(operator.batch))
