"""The verdicts of `explain`, as rules on one observation; the first rule that applies names the bottleneck."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from headrace.resources import format_bytes
from headrace.tuning.observation import Observation, StageObservation
from headrace.tuning.space import PREFETCH, THREADS

__all__ = ["FED", "LIMITS", "Verdict", "judge"]

FED = 0.1
"""A trainer that waits for less than this share of the time is itself the limit; it could gain a ninth at most."""
BUSY = 0.9
"""CPUs above this utilisation are the limit; the rest is lost between services."""
FULL = 0.8
"""Memory use above this holds workers back."""
HELD = 0.3
"""A stage that waits for memory for more than this share of the time is limited by memory."""
BLOCKING = 0.5
"""A stage without a CPU for more than this share of its services waits for something."""
AT_WORK = 0.5
"""More workers help a stage whose workers are busy for more than this share of the time."""
IDLE = 0.3
SHORT_S = 1e-3
"""Workers that are less busy than that, with work shorter than this, wait for each other: handing over an element takes
about 0.1 ms."""
QUEUED, MOSTLY_QUEUED = 0.25, 0.5
"""If this share of the blocked time is waiting for a CPU, the CPUs are the limit: the first on a busy machine, the
second on any machine."""
GIL_WAIT_S = 2e-3
"""A thread that waits longer than this for the GIL competes with threads that hold it all the time."""


@dataclass(frozen=True)
class Verdict:
    """The bottleneck of a pipeline.

    Attributes:
        limit: One of `LIMITS`.
        reason: Why, in one sentence.
        help: What would help, in one sentence.
        stage: Number of the stage concerned; None for the slowest.
    """

    limit: str
    reason: str
    help: str
    stage: int | None = None


@dataclass(frozen=True)
class _Facts:
    """The input of the rules.

    Attributes:
        seen: Observation over the time to judge.
        slowest: Number of the stage with the lowest maximum rate.
    """

    seen: Observation
    slowest: int

    @property
    def stage(self) -> StageObservation:
        """The slowest stage."""
        return self.seen.stages[self.slowest]

    @property
    def starved_ratio(self) -> float:
        """Share of the time in which the trainer waits for batches."""
        return self.seen.starved_s / max(self.seen.starved_s + self.seen.consumer_s, 1e-9)

    @property
    def busy_ratio(self) -> float:
        """Utilisation of the CPUs by the stages."""
        busy_s = sum(stage.busy_s for stage in self.seen.stages)
        return busy_s / max(self.seen.cpus * self.seen.window_s, 1e-9)

    @property
    def blocked_s(self) -> float:
        """Seconds of services in threads without a CPU."""
        return sum(_blocked_s(stage) for stage in self.seen.stages if not stage.in_processes)

    @property
    def queued_ratio(self) -> float:
        """Share of that time in which the threads were runnable; 0 if the system does not report it."""
        return min(self.seen.queued_s / self.blocked_s, 1.0) if self.blocked_s > 0 else 0.0

    @property
    def stage_queued_ratio(self) -> float:
        """The same for the slowest stage; its threads cannot be distinguished from those of other stages."""
        if not self.stage.in_processes:
            return self.queued_ratio
        return min(self.stage.queued_s / max(_blocked_s(self.stage), 1e-12), 1.0)

    @property
    def is_hardly_queued(self) -> bool:
        """Whether threads and worker processes without a CPU are known to be hardly ever waiting for one."""
        told = [stage for stage in self.seen.stages if not stage.in_processes or stage.queued_s > 0]
        told_s = sum(map(_blocked_s, told))
        untold_s = sum(stage.wall_s for stage in self.seen.stages if stage not in told)
        queued_s = self.seen.queued_s + sum(stage.queued_s for stage in told)
        return 0.0 < queued_s < QUEUED * told_s and untold_s < told_s

    @property
    def waiting_ratio(self) -> float:
        """Share of the slowest stage's services spent waiting for something other than a CPU."""
        return _blocked_s(self.stage) * (1.0 - self.stage_queued_ratio) / max(self.stage.wall_s, 1e-12)

    @property
    def at_work_ratio(self) -> float:
        """Share of time in which all workers (or their shared threads) are busy."""
        workers = sum(stage.workers for stage in self.seen.stages)
        threads = min(self.seen.values.get(THREADS, workers), workers)
        return sum(stage.wall_s for stage in self.seen.stages) / max(threads * self.seen.window_s, 1e-9)


def judge(seen: Observation, slowest: int) -> Verdict:
    """The bottleneck of a pipeline.

    Args:
        seen: Observation over the time to judge.
        slowest: Number of the stage with the lowest maximum rate.
    """
    facts = _Facts(seen, slowest)
    return next(verdict for rule in _RULES if (verdict := rule(facts)) is not None)


def _consumer(facts: _Facts) -> Verdict | None:
    if facts.seen.consumer_s <= 0 or facts.starved_ratio >= FED:
        return None
    return Verdict(
        "consumer",
        f"the trainer waits for batches only {facts.starved_ratio:.1%} of the time, so it is itself the limit",
        "a faster training step; a faster pipeline would hardly help",
    )


def _memory(facts: _Facts) -> Verdict | None:
    """Memory of the process, or the memory budget for elements in flight."""
    seen = facts.seen
    held = max(range(len(seen.stages)), key=lambda number: seen.stages[number].wait_memory_s)
    if seen.memory_ratio > FULL:
        return Verdict(
            "memory",
            f"{seen.memory_ratio:.0%} of this process's memory limit is in use, so work is held back",
            "smaller batches, fewer workers, or a larger memory limit",
            held,
        )
    stage = seen.stages[held]
    waits = min(stage.wait_memory_s / max(seen.window_s, 1e-9), 1.0)
    if waits <= HELD or not math.isfinite(seen.budget_bytes):
        return None
    return Verdict(
        "memory",
        f"{stage.name} waits {waits:.0%} of the time for room in the memory budget of "
        f"{format_bytes(int(seen.budget_bytes))}, of which {format_bytes(int(seen.in_flight_bytes))} are in use",
        "a larger memory_bytes, smaller batches or shuffle blocks"
        + (", less prefetch" if seen.values.get(PREFETCH, 0) > 2 else ""),
        held,
    )


def _cpus(facts: _Facts) -> Verdict | None:
    """The CPUs: either the pipeline keeps them busy, or its threads wait for CPUs that others use."""
    seen, cpus = facts.seen, _count_cpus(facts.seen.cpus)
    if facts.busy_ratio > BUSY:
        heaviest = max(seen.stages, key=lambda stage: stage.busy_s)
        share = heaviest.busy_s / max(sum(stage.busy_s for stage in seen.stages), 1e-9)
        return Verdict(
            "CPUs",
            f"the pipeline keeps the {cpus} {min(facts.busy_ratio, 1.0):.0%} busy",
            f"more CPUs, or less work per batch: {heaviest.name} takes {share:.0%} of the pipeline's CPU time",
        )
    less = "less other work on the machine, including the trainer's own threads; more CPUs"
    if seen.machine_busy_ratio > BUSY and not facts.is_hardly_queued:
        return Verdict(
            "CPUs",
            f"the machine is {seen.machine_busy_ratio:.0%} busy, including other work; the pipeline uses "
            f"{facts.busy_ratio:.0%} of the {cpus}",
            less,
        )
    blocked = _blocked_s(facts.stage) / max(facts.stage.wall_s, 1e-12)
    if blocked > BLOCKING and facts.stage_queued_ratio > MOSTLY_QUEUED:
        who = f"worker processes of {facts.stage.name}" if facts.stage.in_processes else "threads of the pipeline"
        return Verdict(
            "CPUs",
            f"{who} without a CPU are runnable {facts.stage_queued_ratio:.0%} of the time; the pipeline "
            f"uses {facts.busy_ratio:.0%} of the {cpus}",
            less,
        )
    return None


def _short_services(facts: _Facts) -> Verdict | None:
    longest_s = max(stage.wall_s / max(stage.services, 1) for stage in facts.seen.stages)
    if longest_s >= SHORT_S or facts.at_work_ratio >= IDLE:
        return None
    return Verdict(
        "overhead",
        f"the stages are idle {1.0 - facts.at_work_ratio:.0%} of the time: handing over an element takes "
        "longer than the work itself",
        "larger batches",
    )


def _idle(facts: _Facts) -> Verdict | None:
    """No stage is busy enough to be the limit."""
    at_work = max(_at_work_ratio(stage, facts.seen.window_s) for stage in facts.seen.stages)
    if at_work >= IDLE or facts.at_work_ratio >= IDLE:
        return None
    return _overhead(facts)


def _lock(facts: _Facts) -> Verdict | None:
    holder = _lock_holder(facts.seen)
    if facts.waiting_ratio <= BLOCKING or facts.seen.gil_wait_s <= GIL_WAIT_S or holder is None:
        return None
    name, num_workers = facts.seen.stages[holder].name, facts.seen.stages[holder].workers
    return Verdict(
        "GIL",
        f"{name}, with {num_workers} worker{'s' * (num_workers != 1)}, runs Python code in one thread at a time: a "
        f"thread waits {1000 * facts.seen.gil_wait_s:.0f} ms for the GIL",
        f'run {name} in processes: map(..., executor="process"), or use Arrow and NumPy instead of loops',
        holder,
    )


def _storage(facts: _Facts) -> Verdict | None:
    stage = facts.stage
    reads = facts.slowest == 0 if stage.reads is None else stage.reads
    if facts.waiting_ratio <= BLOCKING or not reads or not stage.services:
        return None
    return Verdict(
        "storage",
        f"{stage.name} spends {facts.waiting_ratio:.0%} of its time waiting for storage or network, with "
        f"{stage.workers} worker{'s' * (stage.workers != 1)}",
        f"more workers at {stage.name}: they cost no CPU while they wait; faster storage; fewer columns",
    )


def _waiting(facts: _Facts) -> Verdict | None:
    stage = facts.stage
    if facts.waiting_ratio <= BLOCKING:
        return None
    where = "its worker processes are starting, or " if stage.in_processes else ""
    return Verdict(
        "waiting",
        f"{stage.name} reads no storage, but is blocked {facts.waiting_ratio:.0%} of its time, not by waiting "
        f"for a CPU: {where}its function sleeps, calls a service or waits for a lock",
        f"more workers at {stage.name}: they cost no CPU while they wait; or a function that waits less",
    )


def _workers(facts: _Facts) -> Verdict | None:
    stage = facts.stage
    if max(_at_work_ratio(stage, facts.seen.window_s), facts.at_work_ratio) < AT_WORK:
        return None
    return Verdict(
        "workers",
        f"{stage.name} has too few workers ({stage.workers}); the CPUs are only {facts.busy_ratio:.0%} busy",
        f"more workers at {stage.name}",
    )


def _overhead(facts: _Facts) -> Verdict:
    return Verdict(
        "overhead",
        f"the trainer waits although the stages are idle {max(1.0 - facts.at_work_ratio, 0.0):.0%} of the time and the "
        f"CPUs {max(1.0 - facts.busy_ratio, 0.0):.0%}: the time is spent on starting, stopping and handing over",
        "longer windows, larger batches",
    )


LIMITS = ("consumer", "memory", "CPUs", "overhead", "GIL", "storage", "waiting", "workers")
"""All limits, in the order in which the rules check them."""

_RULES: tuple[Callable[[_Facts], Verdict | None], ...] = (
    _consumer,
    _memory,
    _cpus,
    _short_services,
    _idle,
    _lock,
    _storage,
    _waiting,
    _workers,
    _overhead,
)


def _blocked_s(stage: StageObservation) -> float:
    return max(stage.wall_s - stage.busy_s, 0.0)


def _at_work_ratio(stage: StageObservation, window_s: float) -> float:
    """Share of its workers' time in which a stage is busy, from its own counts, which know when workers were added."""
    by_account = stage.wall_s / max(stage.wall_s + stage.wait_input_s + stage.wait_output_s, 1e-9)
    of_workers = stage.wall_s / max(stage.workers * window_s, 1e-9)
    return by_account if stage.wait_input_s + stage.wait_output_s > 0 else min(of_workers, 1.0)


def _lock_holder(seen: Observation) -> int | None:
    """The stage in threads that computes most; the others look slow because they wait for its GIL.

    None if no other thread shares the GIL, or no such stage computes.
    """
    threads = [number for number, stage in enumerate(seen.stages) if not stage.in_processes]
    holder = max(threads, key=lambda number: seen.stages[number].busy_s, default=None)
    if holder is None or seen.stages[holder].busy_s <= 0 or sum(seen.stages[n].workers for n in threads) < 2:
        return None
    return holder


def _count_cpus(count: float) -> str:
    return "one CPU" if count == 1 else f"{count:g} CPUs"
