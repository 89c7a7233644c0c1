"""The state machine of scheduled steps: events in, instructions out, each with its reason. No threads, no clock.

Whoever drives it tells what happened (`BatchRead`, `Finished`, ...) with the time, and carries out every `Run` it gets
back. What holds under every policy:

- no operator runs before its inputs are there, and dense operators run in the order of the batches;
- a pull of batch b reads rows as the push of b - 1 left them; an early one as that of b - 2 did, and then it leaves out
  the rows that b - 1 touches, which follow as `held`. A pull whose push is not applied yet is sent only to a store that
  holds it back until then;
- work on later batches is begun only if its bytes fit the budget; the next batch to train always goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from headrace.scheduling.byte_budget import ByteBudget
from headrace.scheduling.cost import Costs
from headrace.scheduling.events import BatchRead, Event, Finished, NoMoreRows, Run, Wanted
from headrace.scheduling.graph import JOINT, Kind, Operator
from headrace.scheduling.policies.base import Choice, Policy
from headrace.scheduling.probing import Probe, make_probe

__all__ = ["SchedulerState"]

KEPT = {Kind.READ, Kind.FEATURES, Kind.PULL}
"""Operators whose bytes count against the budget."""

CPU_BOUND_RATIO = 0.95
"""Feature work this near the length of the gap fills it: estimates are no better than that."""


@dataclass
class _Live:
    """How far a batch is that was read and not yet trained; sets hold groups.

    Attributes:
        groups: Its features, in the order declared; `JOINT` alone where they are one operator.
    """

    groups: Sequence[int]
    begun: set[int] = field(default_factory=set)
    computed: set[int] = field(default_factory=set)
    pulls_sent: set[int] = field(default_factory=set)
    pulled: set[int] = field(default_factory=set)
    held_open: set[int] = field(default_factory=set)  # early pulls whose rest is not here yet
    held_sent: set[int] = field(default_factory=set)
    charged_bytes: int = 0
    dense: bool = False  # running or done


class SchedulerState:
    """Decides what runs when. Not safe for several threads: whoever drives it holds a lock.

    Attributes:
        policy: How it decides where there is a choice.
        num_groups: Parts into which features can be split.
        num_cores: Feature operators that may run at once while no training work does.
        spare_cores: The same while training work runs: cores that dense operators leave free.
        store_holds: Whether the store holds a pull back until the push it must see is applied.
        bytes: Those of batches that are read and not yet trained.
        costs: What operators took.
        current: The next batch to train, or the one in training.
        idle_reason: Why processors without work have none.
    """

    def __init__(
        self,
        num_groups: int,
        policy: Policy,
        *,
        num_cores: int = 1,
        spare_cores: int = 0,
        store_holds: bool = False,
        budget_bytes: int = 1 << 62,
        probe: Probe | None = None,
    ) -> None:
        """Nothing is read yet; `probe` is what an earlier run of the same job has found out about ways of sending."""
        self.policy = policy
        self.num_groups = num_groups
        self.num_cores = num_cores
        self.spare_cores = spare_cores
        self.store_holds = store_holds
        self.bytes = ByteBudget(budget_bytes, num_groups)
        self.costs = Costs(num_groups)
        self.current = 0
        self.idle_reason = ""
        self.now_s = 0.0
        self._batches: dict[int, _Live] = {}
        self._next_read = 0
        self._reading = self._ended = False
        self._wanted = -1
        self._applied = -1  # the last batch whose push is applied
        self._trainer_busy = False
        self._running: list[Operator] = []  # feature operators at work
        self._gap_start_s: float | None = None
        self._probe = probe or make_probe(policy, num_groups=num_groups, store_holds=store_holds)
        self._step_end_s: float | None = None
        self._order: Sequence[int] = range(num_groups)

    # What happened

    def handle(self, *events: Event) -> list[Run]:
        """Take note of events that came together; returns what is to be done now, in this order."""
        for event in events:
            self._note(event)
        return list(self._decide())

    def _note(self, event: Event) -> None:
        self.now_s = event.at_s
        match event:
            case BatchRead():
                self._read(event)
            case NoMoreRows():
                self._reading, self._ended = False, True
                self.bytes.give_back(Operator(Kind.READ, self._next_read))
            case Wanted():
                self._wanted = event.batch
            case Finished():
                self._finish(event)

    @property
    def is_over(self) -> bool:
        """Whether every batch there is was trained and applied."""
        return self._ended and not self._batches and self._applied == self.current - 1

    def _read(self, event: BatchRead) -> None:
        batch = self._next_read
        self._reading = False
        self._next_read += 1
        self._batches[batch] = _Live(self._groups)
        self._settle(Operator(Kind.READ, batch), event.seconds, event.num_bytes)

    def _finish(self, event: Finished) -> None:
        operator = event.operator
        batch = self._batches.get(operator.batch)
        match operator.kind:
            case Kind.FEATURES:
                assert batch is not None
                self._running.remove(operator)
                batch.computed.add(operator.group)
            case Kind.PULL:
                assert batch is not None
                batch.pulled.add(operator.group)
            case Kind.HELD:
                assert batch is not None
                batch.held_open.discard(operator.group)
            case Kind.DENSE:
                self._trainer_busy = False
            case Kind.PUSH:
                self._applied = operator.batch
            case Kind.UPDATE:
                self._trainer_busy = False
                self._end_batch(operator.batch)
        if operator.kind is Kind.DENSE:
            self._gap_start_s = self.now_s
        elif self._gap_start_s is not None and self._is_ready(self.current):
            self.costs.gap_s.add(self.now_s - self._gap_start_s)
            self._gap_start_s = None
        self._settle(operator, event.seconds, event.num_bytes)

    def _end_batch(self, number: int) -> None:
        assert number == self.current, f"update of batch {number} while {self.current} is in training"
        self.bytes.ledger.add(-self._batches.pop(number).charged_bytes)
        self.current += 1
        self._order = self.policy.order(self.costs, self.num_cores)
        if self._step_end_s is not None:
            self._probe.learn(self.now_s - self._step_end_s)
        self._step_end_s = self.now_s

    @property
    def _groups(self) -> Sequence[int]:
        """How features of the next batch to be read are split."""
        return (JOINT,) if self._probe.mode.joint and self.num_groups > 1 else range(self.num_groups)

    def _ordered(self, live: _Live) -> Sequence[int]:
        return self._order if len(live.groups) == self.num_groups else live.groups

    # What policies may ask

    @property
    def pulls_early(self) -> bool:
        """Whether pulls are early now: the policy has them, and on this job they pay."""
        return self._probe.mode.early

    @property
    def training_first(self) -> bool:
        """Whether training work runs, or could."""
        return self._trainer_busy or (self._wanted >= self.current and self._is_ready(self.current))

    @property
    def gap_left_s(self) -> float:
        """Predicted seconds until training work is ready."""
        if self._gap_start_s is None:
            return 0.0
        return self._gap_start_s + self.costs.gap_s.value - self.now_s

    @property
    def cpu_bound(self) -> bool:
        """Whether feature work of a step takes at least as long as the gap it could hide in.

        Then it is never right to leave a processor idle: the work must be done anyway, and nothing else waits longer.
        (With the features inside the gap, the gap is as long as they are.)
        """
        features_s = sum(self.costs.seconds(Kind.FEATURES, group) for group in self._groups)
        return features_s / self.num_cores >= CPU_BOUND_RATIO * self.costs.gap_s.value

    @property
    def last_read(self) -> int:
        """The newest batch whose rows are here."""
        return self._next_read - 1

    @property
    def num_running(self) -> int:
        """Feature operators at work."""
        return len(self._running)

    def feeds_early_pull(self, batch: int) -> bool:
        """Whether features of a batch are needed before the dense work of the batch before it begins.

        Its early pull can only run under that dense work if its keys are known by then, so with early pulls these
        features are part of the step's own work. Not so if its rows are not here or its bytes do not fit.
        """
        live = self._batches.get(batch)
        if not self.pulls_early or live is None or len(live.computed) == len(live.groups):
            return False
        group = self.next_group(batch)
        return self.is_running(batch) if group is None else self.is_running(batch) or self.fits(batch, group)

    def is_applied(self, batch: int) -> bool:
        """Whether the push of a batch is applied."""
        return self._applied >= batch

    def is_running(self, batch: int) -> bool:
        """Whether a feature operator of a batch is at work."""
        return any(operator.batch == batch for operator in self._running)

    def has_begun(self, batch: int) -> bool:
        """Whether a feature operator of a batch is done or at work."""
        return bool(self._batches[batch].begun)

    def next_group(self, batch: int) -> int | None:
        """The first group in order whose features are not begun; None if there is none, or no rows."""
        live = self._batches.get(batch)
        if live is None or len(live.begun) == len(live.groups):
            return None
        return next(group for group in self._ordered(live) if group not in live.begun)

    def fits(self, batch: int, group: int) -> bool:
        """Whether the bytes of a feature operator fit the budget."""
        return batch == self.current or self.bytes.fits(Operator(Kind.FEATURES, batch, group))

    # What is to be done

    def _decide(self) -> Iterator[Run]:
        yield from self._pulls()
        yield from self._training()
        yield from self._reads()
        yield from self._features()

    def _reads(self) -> Iterator[Run]:
        ahead = self._next_read - self.current
        operator = Operator(Kind.READ, self._next_read)
        if self._reading or self._ended or ahead > self.policy.num_ahead:
            return
        if ahead > 0 and not self.bytes.fits(operator):
            return
        self._reading = True
        self.bytes.reserve(operator)
        yield Run(operator, "the next to train" if ahead == 0 else f"{ahead} ahead, within the budget")

    def _pulls(self) -> Iterator[Run]:
        for number in range(self.current, min(self.current + 1, self._next_read - 1) + 1):
            live = self._batches[number]
            strict = self._strict(number)
            # Only for an update that is sure to come: else the store would hold the request until it gives up.
            asks_ahead = self.store_holds and self._probe.mode.ahead and self._wanted >= number - 1
            # What an early pull left out follows all early pulls: held back by the store, it must not be in their way.
            if strict or (asks_ahead and len(live.pulled) == len(live.groups)):
                for group in sorted(
                    (live.held_open & live.pulled) - live.held_sent
                ):  # by then it is known what is left out
                    live.held_sent.add(group)
                    reason = "the push before is applied" if strict else "answered when the push before is applied"
                    yield Run(Operator(Kind.HELD, number, group), reason, after=number - 1)
            early = self.pulls_early and not strict
            if not (self._early_allowed(number) if early else strict or asks_ahead):
                return
            ready = live.computed - live.pulls_sent
            if not ready or not self._worth_sending(live, strict):
                continue
            for group in [group for group in self._ordered(live) if group in ready]:
                live.pulls_sent.add(group)
                self.bytes.reserve(Operator(Kind.PULL, number, group))
                if early:
                    live.held_open.add(group)
                yield self._pull(number, group, strict, early)

    def _worth_sending(self, live: _Live, strict: bool) -> bool:
        """Whether pulls of the groups that are ready go out now; each request costs both ends time of its own.

        All together once they are complete. Before that only what the link has been waiting for: by group, the push
        being applied, and nothing of the batch on its way.
        """
        if len(live.computed) == len(live.groups):
            return True
        return self._probe.mode.by_group and strict and live.pulls_sent == live.pulled

    def _pull(self, number: int, group: int, strict: bool, early: bool) -> Run:
        reason = "its keys are known"
        if early:
            reason += ", and those of the push on its way"
        elif not strict:
            reason += "; answered when the push before is applied"
        return Run(Operator(Kind.PULL, number, group), reason, after=number - 2 if early else number - 1, early=early)

    def _strict(self, number: int) -> bool:
        """Whether every push that a batch must see is applied."""
        return self._applied >= number - 1

    def _early_allowed(self, number: int) -> bool:
        before = self._batches.get(number - 1)
        return self._applied >= number - 2 and (before is None or len(before.pulls_sent) == len(before.groups))

    def _is_ready(self, number: int) -> bool:
        live = self._batches.get(number)
        if live is None or live.dense or len(live.pulled) < len(live.groups) or live.held_open:
            return False
        return not self.feeds_early_pull(number + 1)

    def _training(self) -> Iterator[Run]:
        if self._trainer_busy:
            return
        live = self._batches.get(self.current)
        if live is not None and live.dense:
            self._trainer_busy = True
            yield Run(Operator(Kind.PUSH, self.current), "its gradients are known")
            yield Run(Operator(Kind.UPDATE, self.current), "its gradients are known")
        elif self._wanted >= self.current and self._is_ready(self.current):
            assert live is not None
            live.dense = self._trainer_busy = True
            yield Run(Operator(Kind.DENSE, self.current), "all its rows are here")

    def _features(self) -> Iterator[Run]:
        while True:
            most = self.policy.num_workers(self.num_cores, self.spare_cores if self.training_first else self.num_cores)
            if self.num_running >= most:
                self.idle_reason = (
                    "training work comes first" if self.training_first and not most else "all cores at work"
                )
                return
            choice: Choice = self.policy.choose(self)
            if choice.batch < 0:
                self.idle_reason = choice.reason
                return
            operator = Operator(Kind.FEATURES, choice.batch, choice.group)
            self._running.append(operator)
            self._batches[choice.batch].begun.add(choice.group)
            self.bytes.reserve(operator)
            yield Run(operator, choice.reason)

    def _settle(self, operator: Operator, seconds: float, num_bytes: int) -> None:
        """Put what an operator really took in place of what was expected."""
        self.costs.learn(operator, seconds, num_bytes)
        self.bytes.settle(operator, num_bytes)
        live = self._batches.get(operator.batch)
        if live is not None and operator.kind in KEPT:
            live.charged_bytes += num_bytes
            self.bytes.ledger.add(num_bytes)
