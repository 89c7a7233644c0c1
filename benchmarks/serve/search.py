"""The highest rate at which a server keeps its promise, and how long answers take at that rate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from serve.open_loop import Outcome, Target, arrivals, run_open_loop

__all__ = ["Found", "highest_rate"]

PROMISE_MS = 20.0
MOST_ERRORS = 0.001
"""Part of the requests that may be refused or fail."""
MIN_REQUESTS = 300
MOST_LATE_MS = 2.0
"""A run in which the client itself sent 1 % of the requests later than this says nothing about the server."""


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        rate: Requests per second; 0 if the promise was never kept.
        outcomes: Runs at that rate.
        is_limited_by_client: Whether a higher rate failed because of the client.
    """

    rate: float
    outcomes: list[Outcome]
    is_limited_by_client: bool


def highest_rate(target: Target, first: float, *, seconds: float, steps: int, repeats: int) -> Found:
    """Raise or lower a rate until the promise is kept on one side and not on the other, then bisect.

    A rate fails if the promise is broken in two runs.

    Args:
        target: The server and its requests.
        first: Rate to begin with, per second.
        seconds: Length of a run.
        steps: Steps of the bisection; each halves the distance in logarithms.
        repeats: Further runs at the rate that was found; if more than half fail, the next lower one is taken.
    """
    run_open_loop(target, arrivals(first / 4, seconds))  # nothing is cold afterwards
    kept: dict[float, Outcome] = {}
    failed: list[float] = []
    client = False
    rate = first
    while len(kept) + len(failed) < 16:
        outcome = _best_of(2, target, rate, seconds)
        if is_kept(outcome):
            kept[rate] = outcome
        else:
            failed.append(rate)
            client = client or is_late(outcome)
        if not failed:
            rate *= 1.6
        elif not kept:
            rate /= 2.5
            if rate < first / 20:
                return Found(0.0, [], client)
        elif steps == 0:
            break
        else:
            steps -= 1
            rate = float(np.sqrt(max(kept) * min(each for each in failed if each > max(kept))))
    for rate in sorted(kept, reverse=True):
        length = length_of(rate, seconds)
        outcomes = [run_open_loop(target, arrivals(rate, length, seed)) for seed in range(5, repeats + 5)]
        if sum(map(is_kept, outcomes)) >= repeats / 2:
            return Found(rate, [kept[rate], *outcomes], client)
    return Found(0.0, [], client)


def _best_of(count: int, target: Target, rate: float, seconds: float) -> Outcome:
    """A run that keeps the promise, if one of several does: a machine that stands still for a moment says little."""
    for seed in range(count):
        outcome = run_open_loop(target, arrivals(rate, length_of(rate, seconds), seed))
        if is_kept(outcome):
            break
    return outcome


def length_of(rate: float, seconds: float) -> float:
    """Seconds of a run, in which there must be requests enough for a 99th percentile."""
    return float(min(max(seconds, MIN_REQUESTS / rate), 2 * seconds))


def is_kept(outcome: Outcome) -> bool:
    """Whether 99 % of the requests were answered in time, and nearly all at all."""
    total = outcome.num_ok + outcome.num_errors
    return (
        not outcome.gave_up
        and total > 0
        and outcome.num_errors <= MOST_ERRORS * total
        and outcome.percentile_ms(99) <= PROMISE_MS
    )


def is_late(outcome: Outcome) -> bool:
    """Whether the client itself was late."""
    return len(outcome.late_s) > 0 and 1000 * float(np.percentile(outcome.late_s, 99)) > MOST_LATE_MS
