"""Finds the bottleneck of a whole run from the explanations of its windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.tuning.verdicts import FED

__all__ = ["RunLimit", "limit_of_run"]


@dataclass(frozen=True)
class RunLimit:
    """The bottleneck of a run.

    Attributes:
        limit: One of `headrace.tuning.verdicts.LIMITS`.
        starved_ratio: Share of the time in which the trainer waited for batches.
        lost_ratio: Share of that waiting time in windows with this limit; 1 for the trainer itself.
        example: Explanation of the window in which this limit cost the most time; None if no window has this limit.
    """

    limit: str
    starved_ratio: float
    lost_ratio: float
    example: Mapping[str, Any] | None

    def __str__(self) -> str:
        waits = f"the trainer waited for batches {self.starved_ratio:.1%} of the time"
        if self.limit == "consumer":
            return f"over the run: consumer; {waits}: the training step is the limit"
        return f"over the run: {self.limit}; {waits}, {self.lost_ratio:.0%} of it in windows with this limit"


def limit_of_run(explained: Sequence[Mapping[str, Any]]) -> RunLimit | None:
    """Find the limit under which the trainer waited longest, or the trainer itself if it hardly waited.

    Args:
        explained: Explanations as values, oldest first, each covering the time since its pipeline was opened. `ended`
            marks the last explanation of a pipeline. Of explanations without it, only the last one before the next end
            counts.

    Returns:
        The limit; None if no explanation has the time that it covers.
    """
    parts: list[Mapping[str, Any]] = []
    running: Mapping[str, Any] | None = None
    for each in explained:
        if "starved_s" not in each:
            continue
        running = each
        if each.get("ended"):
            parts.append(each)
            running = None
    parts += [] if running is None else [running]
    if not parts:
        return None
    starved_s = sum(part["starved_s"] for part in parts)
    starved_ratio = starved_s / max(starved_s + sum(part["consumer_s"] for part in parts), 1e-9)
    if starved_ratio < FED:
        fed = [part for part in parts if part["limit"] == "consumer"]
        return RunLimit("consumer", starved_ratio, 1.0, max(fed, key=lambda part: part["consumer_s"], default=None))
    lost: dict[str, float] = {}
    for part in parts:
        if part["limit"] != "consumer":
            lost[part["limit"]] = lost.get(part["limit"], 0.0) + part["starved_s"]
    if not lost:  # windows that hardly waited lose nothing
        return RunLimit("consumer", starved_ratio, 1.0, max(parts, key=lambda part: part["consumer_s"]))
    limit = max(lost, key=lambda name: lost[name])
    example = max((part for part in parts if part["limit"] == limit), key=lambda part: part["starved_s"])
    return RunLimit(limit, starved_ratio, lost[limit] / max(starved_s, 1e-9), example)
