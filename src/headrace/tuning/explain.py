"""`explain`: what limits a pipeline, why, and what one more worker or CPU would give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from headrace.errors import ConfigError
from headrace.tuning.estimating import Estimator
from headrace.tuning.observation import Observation
from headrace.tuning.rates import StageRate, pipeline_rate
from headrace.tuning.space import Space, workers_of

__all__ = ["Explanation", "explain"]

FED = 0.05
"""A consumer that waits for less than this share of the time is the limit itself."""
BUSY = 0.9
"""CPUs busier than this limit the pipeline; what is left is lost between services."""
FULL = 0.8
"""Memory fuller than this holds workers back."""
BLOCKING = 0.5
"""A stage that spends more than this share of a service without a CPU waits for storage or network."""


@dataclass(frozen=True)
class Explanation:
    """What limits a pipeline.

    Attributes:
        limit: "consumer", "memory", "CPUs", "storage" or "workers".
        stage: The slowest stage; the one to look at where the limit is "storage" or "workers".
        rate_per_s: Elements delivered a second.
        consumer_per_s: Elements the trainer could take a second, from its own time between requests.
        worker_gain: Predicted gain of one more worker at that stage, as a share of the rate.
        cpu_gain: Predicted gain of one more CPU, with workers added as needed.
        reason: One sentence.
    """

    limit: str
    stage: str
    rate_per_s: float
    consumer_per_s: float
    worker_gain: float
    cpu_gain: float
    reason: str

    def __str__(self) -> str:
        takes = "unknown" if math.isinf(self.consumer_per_s) else f"{self.consumer_per_s:.4g} batches a second"
        return "\n".join(
            (
                f"limit: {self.limit}" + (f" ({self.stage})" if self.limit in ("storage", "workers") else ""),
                f"why: {self.reason}",
                f"rate: {self.rate_per_s:.4g} batches a second; the trainer could take {takes}",
                f"one more worker at {self.stage}: {self.worker_gain:+.1%}; one more CPU: {self.cpu_gain:+.1%}",
            )
        )


def explain(observations: Sequence[Observation], space: Space) -> Explanation:
    """Explain the latest of some windows in a row.

    Args:
        observations: Windows, oldest first; those before the last help to tell stages apart.
        space: What could be changed.

    Raises:
        ConfigError: Nothing was delivered in these windows.
    """
    estimator = Estimator()
    for observation in observations:
        estimator.add(observation)
    if not observations or not estimator.complete:
        raise ConfigError("explain: given windows in which not every stage finished something, expected a running job")
    last, rates = observations[-1], estimator.rates(space)
    workers = [stage.workers for stage in last.stages]
    slowest = min(range(len(rates)), key=lambda i: rates[i].rate(workers[i]))
    limit, reason = _limit(last, rates[slowest])
    consumer = last.consumer_rate_per_s
    now = min(pipeline_rate(rates, workers, last.cpus), consumer)
    more = [k + (i == slowest) for i, k in enumerate(workers)]
    ample = [
        stage.max_workers if workers_of(stage.name) in space else k for stage, k in zip(rates, workers, strict=True)
    ]
    with_worker = min(pipeline_rate(rates, more, last.cpus), consumer)
    with_cpu = min(pipeline_rate(rates, ample, last.cpus + 1), consumer)
    return Explanation(
        limit=limit,
        stage=rates[slowest].name,
        rate_per_s=last.rate_per_s,
        consumer_per_s=consumer,
        worker_gain=max(with_worker / now - 1.0, 0.0),
        cpu_gain=max(with_cpu / now - 1.0, 0.0) if limit in ("CPUs", "workers") else 0.0,
        reason=reason,
    )


def _limit(last: Observation, slowest: StageRate) -> tuple[str, str]:
    starved = last.starved_s / max(last.starved_s + last.consumer_s, 1e-9)
    busy = sum(stage.busy_s for stage in last.stages) / max(last.cpus * last.window_s, 1e-9)
    if last.consumer_s > 0 and starved < FED:
        return "consumer", f"the trainer waits for batches {starved:.1%} of the time: it is the limit itself"
    if last.memory_ratio > FULL:
        return "memory", f"{last.memory_ratio:.0%} of the memory is in use, so work is held back"
    if busy > BUSY:
        return "CPUs", f"the {last.cpus:g} CPUs are {busy:.0%} busy with the pipeline"
    if last.machine_busy_ratio > BUSY:
        share = f"the pipeline has {busy:.0%} of the {last.cpus:g} CPUs"
        return "CPUs", f"the machine is {last.machine_busy_ratio:.0%} busy, other work included; {share}"
    blocking = slowest.blocking_s / max(slowest.blocking_s + slowest.cpu_s, 1e-12)
    if blocking > BLOCKING:
        return "storage", f"{slowest.name} spends {blocking:.0%} of its time waiting for storage or network"
    return "workers", f"{slowest.name} has too few workers, while the CPUs are {busy:.0%} busy"
