"""`explain`: what limits a pipeline, why, and what one more worker or CPU would give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from headrace.errors import ConfigError
from headrace.pipeline.explanation import Explanation, StageShare
from headrace.resources import format_bytes
from headrace.tuning.estimating import Estimator
from headrace.tuning.measuring import max_workers
from headrace.tuning.observation import Observation, StageObservation
from headrace.tuning.rates import StageRate, pipeline_rate
from headrace.tuning.space import PREFETCH, THREADS, Space, workers_of

__all__ = ["explain"]

FED = 0.05
"""A consumer that waits for less than this share of the time is the limit itself."""
BUSY = 0.9
"""CPUs busier than this limit the pipeline; what is left is lost between services."""
FULL = 0.8
"""Memory fuller than this holds workers back."""
HELD = 0.3
"""A stage that is held back for memory for more than this share of the time is limited by it."""
BLOCKING = 0.5
"""A stage that spends more than this share of a service without a CPU waits for something."""
AVERAGED_S = 5.0
"""Seconds of the last windows that are looked at as one."""
IDLE = 0.3
SHORT_S = 1e-3
"""Workers busy for less than that share, with work shorter than this, wait for each other: handing an element over
takes some 0.1 ms."""
QUEUED = 0.25
"""Where this share of the blocked time or more is waiting for a CPU, nothing else needs to be looked for."""
GIL_WAIT_S = 2e-3
"""A thread that waits longer than this for Python's lock shares it with others that hold it all the time."""


@dataclass(frozen=True)
class _Finding:
    """Attributes: stage: The stage meant, by its number; None for the slowest."""

    limit: str
    reason: str
    help: str
    stage: int | None = None


def explain(observations: Sequence[Observation], space: Space, *, tuner: str = "") -> Explanation:
    """Explain the latest of some windows in a row.

    Args:
        observations: Windows, oldest first; those before the last help to tell stages apart.
        space: What could be changed.
        tuner: What the tuner did last, and why.

    Raises:
        ConfigError: Nothing was delivered in these windows.
    """
    if not any(observation.delivered for observation in observations):
        raise ConfigError("explain: nothing has been delivered yet, so there is nothing to tell; ask again later")
    estimator = Estimator()
    for observation in observations:
        estimator.add(observation)
    last = _latest(observations)
    # On a busy machine the estimator does not believe that a stage is blocked; the kernel may know better.
    believed = estimator.complete and not (last.machine_busy_ratio > BUSY and _waits_for_other_things(last))
    rates = estimator.rates(space) if believed else _measured(last, space)
    workers = [stage.workers for stage in last.stages]
    slowest = min(range(len(rates)), key=lambda i: rates[i].rate(workers[i]))
    held = max(range(len(rates)), key=lambda i: last.stages[i].wait_memory_s)
    found = _find(last, rates[slowest], workers[slowest], held)
    stage = slowest if found.stage is None else found.stage
    consumer = last.consumer_rate_per_s
    now = min(pipeline_rate(rates, workers, last.cpus), consumer)
    more = [k + (i == stage) for i, k in enumerate(workers)]
    ample = [rate.max_workers if workers_of(rate.name) in space else k for rate, k in zip(rates, workers, strict=True)]
    with_worker = min(pipeline_rate(rates, more, last.cpus), consumer)
    with_cpus = [min(pipeline_rate(rates, ample, last.cpus + more_cpus), consumer) for more_cpus in (0, 1)]
    return Explanation(
        limit=found.limit,
        stage=rates[stage].name,
        rate_per_s=last.rate_per_s,
        consumer_per_s=consumer,
        worker_gain=max(with_worker / now - 1.0, 0.0) if found.limit in ("storage", "workers") else 0.0,
        cpu_gain=max(with_cpus[1] / with_cpus[0] - 1.0, 0.0) if found.limit == "CPUs" else 0.0,
        reason=found.reason,
        help=found.help,
        stages=tuple(_share(last, i, rate) for i, rate in enumerate(rates)),
        tuner=tuner,
    )


def _latest(observations: Sequence[Observation]) -> Observation:
    """The last windows on the same machine as one: a single one may by chance hold few deliveries, or none."""
    last, window_s = observations[-1], 0.0
    same: list[Observation] = []
    for each in reversed(observations):
        enough = any(one.delivered for one in same)
        if enough and (each.cpus != last.cpus or window_s + each.window_s > AVERAGED_S):
            break
        same.append(each)
        window_s += each.window_s
    return replace(
        last,
        window_s=window_s,
        stages=tuple(_total(stages) for stages in zip(*(each.stages for each in same), strict=True)),
        delivered=sum(each.delivered for each in same),
        consumer_s=sum(each.consumer_s for each in same),
        starved_s=sum(each.starved_s for each in same),
        machine_busy_ratio=sum(each.machine_busy_ratio for each in same) / len(same),
        queued_s=sum(each.queued_s for each in same),
        gil_wait_s=sum(each.gil_wait_s for each in same) / len(same),
    )


def _measured(last: Observation, space: Space) -> list[StageRate]:
    """What each stage took, where one has done nothing of late: a source that is at its end, for instance."""
    rates = []
    for stage in last.stages:
        cpu_s, wall_s = stage.busy_s / last.delivered, stage.wall_s / last.delivered
        most = max_workers(space, stage.name)
        rates.append(StageRate(stage.name, max(cpu_s, 1e-9), max(wall_s - cpu_s, 0.0), max_workers=most))
    return rates


def _total(stages: Sequence[StageObservation]) -> StageObservation:
    counts = ("services", "busy_s", "wall_s", "wait_input_s", "wait_output_s", "wait_memory_s", "bytes_out")
    return replace(stages[0], **{name: sum(getattr(stage, name) for stage in stages) for name in counts})


def _share(last: Observation, index: int, rate: StageRate) -> StageShare:
    stage = last.stages[index]
    at_work = stage.wall_s / max(stage.workers * last.window_s, 1e-9)
    return StageShare(
        stage.name, stage.workers, rate.cpu_s, rate.blocking_s, rate.rate(stage.workers), min(at_work, 1.0)
    )


def _find(last: Observation, slowest: StageRate, workers: int, held: int) -> _Finding:
    """The first limit that applies, from the consumer back to the machine."""
    starved = last.starved_s / max(last.starved_s + last.consumer_s, 1e-9)
    busy = sum(stage.busy_s for stage in last.stages) / max(last.cpus * last.window_s, 1e-9)
    if last.consumer_s > 0 and starved < FED:
        return _Finding(
            "consumer",
            f"the trainer waits for batches {starved:.1%} of the time: it is the limit itself",
            "a faster training step; a faster pipeline gains nothing",
        )
    memory = _memory(last, held)
    if memory is not None:
        return memory
    if busy > BUSY:
        heaviest = max(last.stages, key=lambda stage: stage.busy_s)
        share = heaviest.busy_s / max(sum(stage.busy_s for stage in last.stages), 1e-9)
        return _Finding(
            "CPUs",
            f"the pipeline keeps the {_cpus(last.cpus)} {min(busy, 1.0):.0%} busy",
            f"more CPUs, or less work a batch: {heaviest.name} takes {share:.0%} of the pipeline's CPU time",
        )
    blocking = slowest.blocking_s / max(slowest.blocking_s + slowest.cpu_s, 1e-12)
    if last.machine_busy_ratio > BUSY and not _waits_for_other_things(last):
        return _Finding(
            "CPUs",
            f"the machine is {last.machine_busy_ratio:.0%} busy, other work included; the pipeline has {busy:.0%} of "
            f"the {_cpus(last.cpus)}",
            "less other work on the machine, the trainer's own threads included",
        )
    longest_s = max(stage.wall_s / max(stage.services, 1) for stage in last.stages)
    if longest_s < SHORT_S and _share_at_work(last) < IDLE:
        return _Finding(
            "overhead",
            f"the stages are idle {1.0 - _share_at_work(last):.0%} of the time, for their work is shorter than "
            "handing an element from one to the next",
            "larger batches",
        )
    holder = _lock_holder(last)
    if blocking > BLOCKING and last.gil_wait_s > GIL_WAIT_S and holder is not None:
        name, num_workers = last.stages[holder].name, last.stages[holder].workers
        return _Finding(
            "GIL",
            f"{name}, with {num_workers} worker{'s' * (num_workers != 1)}, runs Python code one piece at a time: a "
            f"thread waits {1000 * last.gil_wait_s:.0f} ms for the interpreter's lock",
            f'run {name} in processes: map(..., executor="process"), or use Arrow and NumPy calls in it',
            holder,
        )
    if blocking > BLOCKING:
        return _Finding(
            "storage",
            f"{slowest.name} spends {blocking:.0%} of its time waiting for storage or network, with "
            f"{workers} worker{'s' * (workers != 1)}",
            f"more workers at {slowest.name}: they cost no CPU while they wait; faster storage; fewer columns",
        )
    return _Finding(
        "workers",
        f"{slowest.name} has too few workers ({workers}), while the CPUs are {busy:.0%} busy",
        f"more workers at {slowest.name}",
    )


def _lock_holder(last: Observation) -> int | None:
    """Of the stages in threads the one that computes most; the others, however slow they look, wait for its lock.

    None where there is nobody to share the lock with, or no such stage computes.
    """
    threads = [number for number, stage in enumerate(last.stages) if not stage.in_processes]
    holder = max(threads, key=lambda number: last.stages[number].busy_s, default=None)
    if holder is None or last.stages[holder].busy_s <= 0 or sum(last.stages[n].workers for n in threads) < 2:
        return None
    return holder


def _share_at_work(last: Observation) -> float:
    """Of the workers' time, in all stages together; where they share threads, of the threads' time."""
    workers = sum(stage.workers for stage in last.stages)
    threads = min(last.values.get(THREADS, workers), workers)
    return sum(stage.wall_s for stage in last.stages) / max(threads * last.window_s, 1e-9)


def _waits_for_other_things(last: Observation) -> bool:
    """On a busy machine: whether waiting for a CPU explains only a small part of the time that stages are blocked."""
    blocked_s = sum(max(stage.wall_s - stage.busy_s, 0.0) for stage in last.stages if not stage.in_processes)
    in_processes = sum(stage.wall_s for stage in last.stages if stage.in_processes)
    return 0.0 < last.queued_s < QUEUED * blocked_s and in_processes < blocked_s


def _memory(last: Observation, held: int) -> _Finding | None:
    """Whether memory limits: that of the process, or the budget for elements in flight."""
    if last.memory_ratio > FULL:
        return _Finding(
            "memory",
            f"{last.memory_ratio:.0%} of the memory this process may use is in use, so work is held back",
            "smaller batches, fewer workers, or a larger memory limit",
            held,
        )
    stage = last.stages[held]
    waits = min(stage.wait_memory_s / max(last.window_s, 1e-9), 1.0)
    if waits > HELD and math.isfinite(last.budget_bytes):
        return _Finding(
            "memory",
            f"{stage.name} waits {waits:.0%} of the time for room in the memory budget of "
            f"{format_bytes(int(last.budget_bytes))}, of which {format_bytes(int(last.in_flight_bytes))} are in use",
            "a larger memory_bytes, smaller batches or shuffle blocks"
            + (", less prefetch" if last.values.get(PREFETCH, 0) > 2 else ""),
            held,
        )
    return None


def _cpus(count: float) -> str:
    return "one CPU" if count == 1 else f"{count:g} CPUs"
