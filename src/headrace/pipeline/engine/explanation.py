"""`Explanation`: the bottleneck of a running pipeline, its cause, and what would help."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Explanation", "StageShare"]


ANY_PER_S = 1e7
"""Rates above this mean that the stage did almost no work in the window."""


@dataclass(frozen=True)
class StageShare:
    """The cost of one stage per batch.

    Attributes:
        name: Name of the stage; stages that one worker call runs together are joined by "+".
        workers: Maximum elements it processes at once.
        cpu_s: CPU seconds per batch delivered.
        blocked_s: Seconds per batch that a worker is blocked on storage, the network or locks.
        rate_per_s: Batches per second that its workers could produce if each had a CPU whenever it needs one.
        busy_ratio: Share of its workers that are busy.
    """

    name: str
    workers: int
    cpu_s: float
    blocked_s: float
    rate_per_s: float
    busy_ratio: float


@dataclass(frozen=True)
class Explanation:
    """The bottleneck of a pipeline, and what would help.

    Attributes:
        limit: "consumer", "memory", "CPUs", "overhead", "GIL", "storage", "waiting" or "workers".
        stage: The slowest stage; look there unless the limit is the consumer.
        rate_per_s: Batches delivered per second.
        consumer_per_s: Batches per second that the trainer could consume, from the time between its requests.
        worker_gain: Predicted gain from one more worker at that stage, as a fraction of the rate.
        cpu_gain: Predicted gain from one more CPU, with workers added as needed, as a fraction of the rate.
        reason: Why this is the bottleneck, in one sentence.
        help: What would help, in one sentence.
        stages: All stages, starting with the source.
        tuner: The tuner's last action and its reason; empty without a tuner.
        consumer_s: Seconds the trainer was busy in the window.
        starved_s: Seconds the trainer waited for batches.
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
        takes = "is always ready" if math.isinf(self.consumer_per_s) else f"could take {_rate(self.consumer_per_s)}"
        where = "" if self.limit == "consumer" else f", at stage {self.stage}"
        lines = [
            f"limit: {self.limit}{where}",
            f"why:   {self.reason}",
            f"rate:  {_rate(self.rate_per_s)} batches per second; the trainer {takes}",
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
    rows = [("stage", "workers", "busy", "CPU ms/batch", "blocked ms/batch", "max rate")]
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
