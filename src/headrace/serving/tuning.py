"""Tunes a scoring service while it runs, with the protocol of pipeline tuners: `ServingJob`, and `PromisePolicy`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from headrace.resources import effective_cpus
from headrace.serving.batcher import Batcher
from headrace.serving.capacity import Cost, plan_capacity
from headrace.tuning.observation import Observation, StageObservation
from headrace.tuning.policies import Proposal
from headrace.tuning.space import Knob, Space

__all__ = ["BATCH_ROWS", "WAITING_ROWS", "PromisePolicy", "ServingJob"]

BATCH_ROWS, WAITING_ROWS = "batch_rows", "waiting_rows"
MOST_WAITING = 1 << 20


class ServingJob:
    """A `headrace.tuning.Job`: the queue of a scoring service. Its only stage is `score`, and elements are rows.

    Args:
        batcher: The queue.
        most_rows: Upper limit of the rows of a batch.
        num_threads: Threads that score.
        clock: Seconds, ascending.
    """

    def __init__(
        self,
        batcher: Batcher[Any],
        *,
        most_rows: int,
        num_threads: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._batcher, self._num_threads, self._clock = batcher, num_threads, clock
        self.space = Space((Knob(BATCH_ROWS, 1, most_rows, "rows"), Knob(WAITING_ROWS, 1, MOST_WAITING, "rows")))
        self._began = self._last_s = clock()
        self._last = (0, 0, 0.0)

    def observe(self) -> Observation:
        """See `Job`."""
        now, batcher = self._clock(), self._batcher
        counts = batcher.num_batches, batcher.num_rows, batcher.busy_s
        batches, rows, busy_s = (after - before for after, before in zip(counts, self._last, strict=True))
        window_s, self._last, self._last_s = now - self._last_s, counts, now
        stage = StageObservation(
            name="score",
            workers=self._num_threads,
            services=int(batches),
            busy_s=busy_s,
            wall_s=busy_s,
            queue_depth=batcher.waiting_rows,
        )
        return Observation(
            time_s=now - self._began,
            window_s=window_s,
            stages=(stage,),
            values={BATCH_ROWS: batcher.most_rows, WAITING_ROWS: batcher.most_waiting_rows},
            delivered=int(rows),
            cpus=effective_cpus().count,
        )

    def apply(self, values: Mapping[str, int]) -> None:
        """See `Job`."""
        self._batcher.most_rows = values.get(BATCH_ROWS, self._batcher.most_rows)
        self._batcher.most_waiting_rows = values.get(WAITING_ROWS, self._batcher.most_waiting_rows)


class PromisePolicy:
    """A `headrace.tuning.Policy` that sets how many rows are scored at a time, and how many may wait; see `capacity`.

    Args:
        promise_s: Seconds within which 99 % of requests are to be answered.
        most_rows: Upper limit of the rows of a batch.
    """

    def __init__(self, promise_s: float, *, most_rows: int) -> None:
        self._promise_s, self._most_rows = promise_s, most_rows
        self._cost = Cost()

    def start(self, space: Space, observation: Observation) -> Proposal:
        """See `Policy`."""
        return self._propose(1)

    def decide(self, observation: Observation) -> Proposal:
        """See `Policy`; small changes are not worth one."""
        (stage,) = observation.stages
        if not stage.services:
            return Proposal(reason="no requests")
        self._cost = self._cost.add(stage.services, observation.delivered, stage.wall_s)
        proposal = self._propose(stage.workers)
        changes = [abs(value / max(observation.values[name], 1) - 1) for name, value in proposal.values.items()]
        return proposal if max(changes) > 0.1 else Proposal(reason=proposal.reason)

    def _propose(self, num_threads: int) -> Proposal:
        capacity = plan_capacity(self._cost, self._promise_s, most_rows=self._most_rows)
        values = {BATCH_ROWS: capacity.most_rows, WAITING_ROWS: num_threads * capacity.most_waiting_rows}
        return Proposal(values, capacity.reason)
