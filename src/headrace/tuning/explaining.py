"""`explain`: finds the bottleneck of a pipeline, and predicts the gain of one more worker or CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from headrace.errors import ConfigError
from headrace.pipeline.engine.explanation import Explanation, StageShare
from headrace.tuning.estimating import Estimator
from headrace.tuning.measuring import max_workers
from headrace.tuning.observation import Observation, StageObservation
from headrace.tuning.rates import StageRate, pipeline_rate
from headrace.tuning.space import Space, workers_of
from headrace.tuning.verdicts import judge

__all__ = ["explain", "total"]

SET_BY_JOB = "; its workers are fixed by the job: scheduler.threads"

WITH_WORKER_GAIN = ("storage", "waiting", "workers")
"""Limits that one more worker may improve."""


def explain(
    observations: Sequence[Observation], space: Space, *, whole: Observation | None = None, tuner: str = ""
) -> Explanation:
    """Explain a pipeline.

    The verdict covers the whole time observed; gains are predicted from the stages' recent needs.

    Args:
        observations: Windows, oldest first; earlier windows improve the estimates.
        space: The tunable settings.
        whole: Observation since the pipeline was opened; None to combine the windows.
        tuner: The tuner's last action and its reason.

    Raises:
        ConfigError: Nothing was delivered in that time.
    """
    seen = whole if whole is not None else total(observations) if observations else None
    if seen is None or not seen.delivered:
        raise ConfigError("explain: nothing has been delivered yet; try again later")
    measured = _measured(seen, space)
    workers = [stage.workers for stage in seen.stages]
    slowest = min(range(len(measured)), key=lambda i: measured[i].rate(workers[i]))
    found = judge(seen, slowest)
    stage = slowest if found.stage is None else found.stage
    rates = _lately(observations, space) or measured
    consumer = seen.consumer_rate_per_s
    now = min(pipeline_rate(rates, workers, seen.cpus), consumer)
    more = [k + (i == stage) for i, k in enumerate(workers)]
    ample = [rate.max_workers if workers_of(rate.name) in space else k for rate, k in zip(rates, workers, strict=True)]
    with_worker = min(pipeline_rate(rates, more, seen.cpus), consumer)
    with_cpus = [min(pipeline_rate(rates, ample, seen.cpus + more_cpus), consumer) for more_cpus in (0, 1)]
    return Explanation(
        limit=found.limit,
        stage=rates[stage].name,
        rate_per_s=seen.rate_per_s,
        consumer_per_s=consumer,
        worker_gain=max(with_worker / now - 1.0, 0.0) if found.limit in WITH_WORKER_GAIN else 0.0,
        cpu_gain=max(with_cpus[1] / with_cpus[0] - 1.0, 0.0) if found.limit == "CPUs" else 0.0,
        reason=found.reason,
        help=found.help + (SET_BY_JOB if _is_fixed(space, rates[stage].name) else ""),
        stages=tuple(_share(seen, i, rate) for i, rate in enumerate(rates)),
        tuner=tuner,
        consumer_s=seen.consumer_s,
        starved_s=seen.starved_s,
    )


def _is_fixed(space: Space, stage: str) -> bool:
    """Whether a stage's workers are in the space but have only one allowed value."""
    knob = workers_of(stage)
    return knob in space and space[knob].min == space[knob].max


def total(observations: Sequence[Observation]) -> Observation:
    """Combine the latest windows with the same CPUs into one; values other than counts are the last or a mean."""
    last = observations[-1]
    same: list[Observation] = []
    for each in reversed(observations):
        if each.cpus != last.cpus and any(one.delivered for one in same):
            break
        same.append(each)
    return replace(
        last,
        window_s=sum(each.window_s for each in same),
        stages=tuple(_total(stages) for stages in zip(*(each.stages for each in same), strict=True)),
        delivered=sum(each.delivered for each in same),
        consumer_s=sum(each.consumer_s for each in same),
        starved_s=sum(each.starved_s for each in same),
        machine_busy_ratio=sum(each.machine_busy_ratio for each in same) / len(same),
        queued_s=sum(each.queued_s for each in same),
        gil_wait_s=sum(each.gil_wait_s for each in same) / len(same),
    )


def _total(stages: Sequence[StageObservation]) -> StageObservation:
    counts = ("services", "busy_s", "wall_s", "wait_input_s", "wait_output_s", "wait_memory_s", "bytes_out", "queued_s")
    return replace(stages[0], **{name: sum(getattr(stage, name) for stage in stages) for name in counts})


def _measured(seen: Observation, space: Space) -> list[StageRate]:
    """The cost of each stage per batch over the time observed."""
    rates = []
    for stage in seen.stages:
        cpu_s, wall_s = stage.busy_s / seen.delivered, stage.wall_s / seen.delivered
        most = max_workers(space, stage.name)
        rates.append(StageRate(stage.name, max(cpu_s, 1e-9), max(wall_s - cpu_s, 0.0), max_workers=most))
    return rates


def _lately(observations: Sequence[Observation], space: Space) -> list[StageRate] | None:
    """The recent cost of each stage per batch, with contention; None if a stage did nothing in these windows."""
    estimator = Estimator()
    for observation in observations:
        estimator.add(observation)
    return estimator.rates(space) if observations and estimator.complete else None


def _share(seen: Observation, index: int, rate: StageRate) -> StageShare:
    stage = seen.stages[index]
    at_work = stage.wall_s / max(stage.workers * seen.window_s, 1e-9)
    return StageShare(
        stage.name, stage.workers, rate.cpu_s, rate.blocking_s, rate.rate(stage.workers), min(at_work, 1.0)
    )
