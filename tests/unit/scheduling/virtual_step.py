"""Training steps on a virtual clock: carries out a scheduler's instructions on model cores and a model link."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from headrace.scheduling.bounds import StepParts
from headrace.scheduling.events import BatchRead, Event, Finished, Run, SegmentRead, StepRequested
from headrace.scheduling.graph import ALL_GROUPS, Kind, Operator
from headrace.scheduling.policies import Policy
from headrace.scheduling.state import SchedulerState

EPSILON = 1e-9


@dataclass(frozen=True)
class VirtualStep:
    """What the operators of a step take on free resources.

    Attributes:
        features_s: Of each group, on one core.
        pull_s: Of each group, on the link alone.
        dense_s: On all cores.
        push_s: On the link alone.
        deferred_ratio: Share of a pull that an early pull leaves out.
        update_s: On all cores.
        group_bytes: What a feature operator leaves in memory.
        read_bytes: What a batch of rows holds.
    """

    features_s: tuple[float, ...]
    pull_s: tuple[float, ...]
    dense_s: float
    push_s: float
    deferred_ratio: float = 0.0
    update_s: float = 0.0
    group_bytes: int = 100
    read_bytes: int = 100

    def features_of(self, group: int) -> float:
        return sum(self.features_s) if group == ALL_GROUPS else self.features_s[group]

    def pull_of(self, group: int) -> float:
        return sum(self.pull_s) if group == ALL_GROUPS else self.pull_s[group]

    def parts(self, num_cores: int = 1) -> StepParts:
        features_s = sum(self.features_s) / num_cores
        return StepParts(
            features_s, sum(self.pull_s), self.dense_s + self.update_s, self.push_s, deferred_ratio=self.deferred_ratio
        )


@dataclass
class _Work:
    operator: Operator
    left_s: float
    began_s: float
    after: int = -1


@dataclass
class VirtualRun:
    """Steps on a virtual clock.

    Background operators take one core each; a training operator takes all, and is as slow as its slowest core, as a
    parallel matrix product is at its barrier: a core it shares with a background operator gives each of them half.
    The link serves one transfer at a time, in the order sent. What must never happen raises.

    Attributes:
        segments: Batches of each segment; all batches are one if there are none.
        unsplit: Segments whose features cannot be split.
        end_s: What the caller does between two segments, on no core.
        now_s: The clock.
        spans: Operator, begin and end, in the order of their ends.
        longest_wait_s: Most seconds training work shared the cores with feature work begun before it.
    """

    step: VirtualStep
    policy: Policy
    num_batches: int
    num_cores: int = 1
    spare_cores: int = 0
    store_waits: bool = False
    budget_bytes: int = 1 << 62
    segments: tuple[int, ...] = ()
    unsplit: tuple[int, ...] = ()
    end_s: float = 5.0
    now_s: float = 0.0
    spans: list[tuple[Operator, float, float]] = field(default_factory=list)
    idle_core_s: float = 0.0
    peak_bytes_ahead: int = 0

    def __post_init__(self) -> None:
        groups = len(self.step.features_s)
        self.state = SchedulerState(
            self.policy,
            num_cores=self.num_cores,
            spare_cores=self.spare_cores,
            store_waits=self.store_waits,
            budget_bytes=self.budget_bytes,
            num_segments=max(len(self.segments), 1),
        )
        self.segments = self.segments or (self.num_batches,)
        assert sum(self.segments) == self.num_batches
        self._segment = self._read_segment = 0
        self._border: _Work | None = None
        self._groups = groups
        self._cpu: list[_Work] = []
        self._trainer: list[_Work] = []
        self._link: list[_Work] = []
        self._early: set[Operator] = set()
        self._done: set[Operator] = set()
        self._joint: set[int] = set()
        self._trained = 0
        self._pending: list[Event] = []

    def run(self) -> VirtualRun:
        """To the end of the last batch."""
        self._tell(self._want())
        while self._goes_on() or self._pending:
            while self._pending:
                self._tell(self._pending.pop(0))
            if self._border is None and self._segment + 1 < len(self.segments) and self.state.is_over:
                assert not self._link, "a transfer at the end of a segment"
                self._border = _Work(Operator(Kind.REQUEST, self._trained), self.end_s, self.now_s)
            if self._goes_on():
                self._advance()
        return self

    def _goes_on(self) -> bool:
        return self._trained < self.num_batches or bool(self._link) or self._segment + 1 < len(self.segments)

    def segment_of(self, batch: int) -> int:
        """The segment of a batch."""
        return next(number for number in range(len(self.segments)) if batch < sum(self.segments[: number + 1]))

    def first_of(self, batch: int) -> int:
        """The first batch of its segment."""
        return sum(self.segments[: self.segment_of(batch)])

    @property
    def step_s(self) -> float:
        """Mean seconds of a step in the second half, the last few left out."""
        ends = [end for operator, _, end in self.spans if operator.kind is Kind.UPDATE]
        first, last = len(ends) // 2, len(ends) - 1 - len(ends) // 8
        return (ends[last] - ends[first]) / (last - first)

    def begins(self, kind: Kind) -> list[tuple[Operator, float]]:
        return sorted(((op, begin) for op, begin, _ in self.spans if op.kind is kind), key=lambda pair: pair[1])

    def _want(self) -> StepRequested:
        return StepRequested(self._trained, self.now_s, self._segment)

    def _tell(self, event: Event) -> None:
        for run in self.state.handle(event):
            self._carry_out(run)
        ahead = self.state.bytes.ledger.used_bytes
        alone = self.step.read_bytes + 2 * self._groups * self.step.group_bytes + 2 * self.step.group_bytes
        self.peak_bytes_ahead = max(self.peak_bytes_ahead, ahead)
        assert ahead <= max(self.budget_bytes, 0) + 1.2 * alone, "only the next batch to train may pass the budget"

    def _carry_out(self, run: Run) -> None:
        operator = run.operator
        assert run.reason
        needs = list(self._needs(operator, early=run.defers))
        if self.store_waits and operator.kind in (Kind.PULL, Kind.DEFERRED_PULL):
            seen = [needed.batch for needed in needs if needed.kind is Kind.PUSH]
            assert run.after == max(seen, default=-1), "the store is told which push its rows must have seen"
            needs = [needed for needed in needs if needed.kind is not Kind.PUSH]
        missing = [needed for needed in needs if needed not in self._done]
        assert not missing, f"{operator} before {', '.join(map(str, missing))}"
        match operator.kind:
            case Kind.READ:
                if operator.batch < sum(self.segments[: self._read_segment + 1]):
                    num_groups = self._num_groups(operator.batch)
                    self._pending.append(BatchRead(self.step.read_bytes, 0.0, self.now_s, num_groups))
                    self._done.add(operator)
                else:
                    self._pending.append(SegmentRead(self.now_s))
                    self._read_segment += 1
            case Kind.FEATURES:
                if operator.group == ALL_GROUPS:
                    self._joint.add(operator.batch)
                self._start(self._cpu, operator, self.step.features_of(self._group_of(operator)))
            case Kind.PULL:
                if run.defers:
                    self._early.add(operator)
                share = 1 - self.step.deferred_ratio if run.defers and operator.batch > 0 else 1.0
                self._start(self._link, operator, share * self.step.pull_of(self._group_of(operator)), run.after)
            case Kind.DEFERRED_PULL:
                pull_s = self.step.pull_of(self._group_of(operator))
                self._start(self._link, operator, self.step.deferred_ratio * pull_s, run.after)
            case Kind.PUSH:
                self._start(self._link, operator, self.step.push_s)
            case Kind.DENSE | Kind.UPDATE:
                seconds = self.step.dense_s if operator.kind is Kind.DENSE else self.step.update_s
                assert not self._trainer, "one training operator at a time"
                self._start(self._trainer, operator, seconds)

    def _start(self, lane: list[_Work], operator: Operator, seconds: float, after: int = -1) -> None:
        assert operator not in self._done, f"{operator} twice"
        assert all(work.operator != operator for work in lane), f"{operator} twice"
        lane.append(_Work(operator, seconds, self.now_s, after))

    def groups_of(self, batch: int) -> Sequence[int]:
        """How the features of a batch were split."""
        return (ALL_GROUPS,) if batch in self._joint else range(self._num_groups(batch))

    def _num_groups(self, batch: int) -> int:
        return 1 if self.segment_of(batch) in self.unsplit else self._groups

    def _group_of(self, operator: Operator) -> int:
        return ALL_GROUPS if self._num_groups(operator.batch) == 1 else operator.group

    def _needs(self, operator: Operator, *, early: bool) -> Iterator[Operator]:
        """What a step's dependencies say, written down once more and independently of the state machine."""
        kind, batch, group, _ = operator
        if kind is Kind.FEATURES:
            yield Operator(Kind.READ, batch)
        elif kind is Kind.PULL:
            yield Operator(Kind.FEATURES, batch, group)
            if self.first_of(batch):
                yield Operator(Kind.REQUEST, self.first_of(batch))  # what is due between segments is done
            if early:
                yield from (Operator(Kind.FEATURES, batch - 1, other) for other in self.groups_of(batch - 1) if batch)
            last_push = batch - 2 if early else batch - 1
            if last_push >= 0:
                yield Operator(Kind.PUSH, last_push)
        elif kind is Kind.DEFERRED_PULL:
            yield Operator(Kind.PULL, batch, group)  # which decides what is left out
            yield Operator(Kind.PUSH, batch - 1)
        elif kind is Kind.DENSE:
            yield from (Operator(Kind.PULL, batch, other) for other in self.groups_of(batch))
            for other in self.groups_of(batch):
                if Operator(Kind.PULL, batch, other) in self._early:
                    yield Operator(Kind.DEFERRED_PULL, batch, other)
            if batch:
                yield Operator(Kind.UPDATE, batch - 1)
        elif kind in (Kind.PUSH, Kind.UPDATE):
            yield Operator(Kind.DENSE, batch)

    def _advance(self) -> None:
        rates = self._rates() + ([] if self._border is None else [(self._border, 1.0)])
        assert rates, f"nothing runs at {self.now_s}: {self.state.idle_reason}"
        seconds = min(work.left_s / rate for work, rate in rates)
        self.now_s += seconds
        if not self._trainer:
            self.idle_core_s += seconds * (self.num_cores - min(self.num_cores, len(self._cpu)))
        for work, rate in rates:
            work.left_s -= seconds * rate
        for work, _ in rates:
            if work.left_s <= EPSILON:
                self._end(work)

    def _rates(self) -> list[tuple[_Work, float]]:
        """How fast what runs goes: a core shared by n gives each 1/n, and training goes at its slowest core's pace."""
        per_core = [0] * self.num_cores
        cores = []
        for number, _ in enumerate(self._cpu):
            cores.append(number % self.num_cores)
            per_core[cores[-1]] += 1
        training = 1 if self._trainer else 0
        parallel = self.num_cores - self.spare_cores
        used = sorted(range(self.num_cores), key=lambda core: per_core[core])[:parallel]
        rates = [
            (work, 1.0 / (per_core[core] + (training if core in used else 0)))
            for work, core in zip(self._cpu, cores, strict=True)
        ]
        rates += [(work, 1.0 / (1 + max(per_core[core] for core in used))) for work in self._trainer]
        return rates + [(work, 1.0) for work in self._served()]

    def _served(self) -> list[_Work]:
        """What the link carries: the first that the store does not hold back."""
        free = [work for work in self._link if work.after < 0 or Operator(Kind.PUSH, work.after) in self._done]
        return free[:1]

    def _end(self, work: _Work) -> None:
        operator = work.operator
        if work is self._border:
            self._border = None
            self._done.add(operator)
            self.spans.append((operator, work.began_s, self.now_s))
            self._segment += 1
            self._pending.append(self._want())
            return
        for lane in (self._cpu, self._trainer, self._link):
            if work in lane:
                lane.remove(work)
        self._done.add(operator)
        self.spans.append((operator, work.began_s, self.now_s))
        num_bytes = self.step.group_bytes if operator.kind in (Kind.FEATURES, Kind.PULL, Kind.PUSH) else 0
        if self._group_of(operator) == ALL_GROUPS and operator.kind in (Kind.FEATURES, Kind.PULL):
            num_bytes *= self._groups
        self._pending.append(Finished(operator, self.now_s - work.began_s, num_bytes, self.now_s))
        if operator.kind is Kind.UPDATE:
            self._trained += 1
            self._pending.append(self._want())
