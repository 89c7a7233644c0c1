"""`Explanation`: what limits a running pipeline, why, and what would help; filled in by whoever watches it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Explanation", "StageShare"]


ANY_PER_S = 1e7
"""A stage that could give more has done nothing of late, or next to nothing."""


@dataclass(frozen=True)
class StageShare:
    """What one stage needs for a batch.

    Attributes:
        name: The stage; several that one worker call runs together are joined by "+".
        workers: Elements it may work on at once.
        cpu_s: CPU seconds for each batch delivered.
        blocked_s: Seconds a worker spends without a CPU for each batch: storage, network, locks.
        rate_per_s: Batches a second its workers could give if each had a CPU whenever it needs one.
        busy_ratio: Share of its workers that is at work.
    """

    name: str
    workers: int
    cpu_s: float
    blocked_s: float
    rate_per_s: float
    busy_ratio: float


@dataclass(frozen=True)
class Explanation:
    """What limits a pipeline.

    Attributes:
        limit: "consumer", "memory", "CPUs", "overhead", "GIL", "storage", "waiting" or "workers".
        stage: The stage that gives the least; the one to look at unless the limit is the consumer.
        rate_per_s: Batches delivered a second.
        consumer_per_s: Batches the trainer could take a second, from its own time between requests.
        worker_gain: Predicted gain of one more worker at that stage, as a share of the rate.
        cpu_gain: Predicted gain of one more CPU, with workers added as needed.
        reason: One sentence.
        help: One sentence: what would help.
        stages: All stages, from the source on.
        tuner: What the tuner did last, and why; empty without one.
        consumer_s: Seconds that the trainer worked in the time explained.
        starved_s: Seconds that it waited for batches.
    """

    limit: str
    stage: str
    rate_per_s: float
    consumer_per_s: float
    worker_gain: float
    cpu_gain: float
    reason: str
    help: str = ""
    stages: tuple[StageShare, ...] = ()
    tuner: str = ""
    consumer_s: float = 0.0
    starved_s: float = 0.0

    def __str__(self) -> str:
        takes = "takes them at once" if math.isinf(self.consumer_per_s) else f"could take {_rate(self.consumer_per_s)}"
        where = "" if self.limit == "consumer" else f", at stage {self.stage}"
        lines = [
            f"limit: {self.limit}{where}",
            f"why:   {self.reason}",
            f"rate:  {_rate(self.rate_per_s)} batches a second; the trainer {takes}",
            f"gain:  one more worker at {self.stage} {self.worker_gain:+.1%}, one more CPU {self.cpu_gain:+.1%}",
        ]
        lines += [f"help:  {self.help}"] if self.help else []
        lines += [f"tuner: {self.tuner}"] if self.tuner else []
        return "\n".join(lines + _table(self.stages))


def _rate(per_s: float) -> str:
    return f"{per_s:,.0f}" if per_s >= 1000 else f"{per_s:.3g}"


def _table(stages: Sequence[StageShare]) -> list[str]:
    if not stages:
        return []
    rows = [("stage", "workers", "at work", "CPU ms a batch", "blocked ms a batch", "could give")]
    rows += [
        (
            stage.name,
            f"{stage.workers}",
            f"{stage.busy_ratio:.0%}",
            f"{1000 * stage.cpu_s:.3g}" if stage.rate_per_s <= ANY_PER_S else "0",
            f"{1000 * stage.blocked_s:.3g}",
            "any" if stage.rate_per_s > ANY_PER_S else f"{_rate(stage.rate_per_s)}/s",
        )
        for stage in stages
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["", *("  ".join(_aligned(row, widths)).rstrip() for row in rows)]


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    first, *rest = [f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)]
    return [f"{first.strip():<{widths[0]}}", *rest]
