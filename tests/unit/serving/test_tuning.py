"""The limits of a service follow what batches cost, through the protocol of tuners."""

from collections.abc import Sequence

import pytest

from headrace.serving.batcher import Batcher
from headrace.serving.capacity import FIRST_ROWS
from headrace.serving.tuning import BATCH_ROWS, WAITING_ROWS, PromisePolicy, ServingJob
from headrace.tuning.guard import Guard

PER_BATCH_S, PER_ROW_S = 0.002, 0.0001


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def nothing(requests: Sequence[object]) -> int:
    return 0


@pytest.fixture
def clock() -> Clock:
    return Clock()


def serve(batcher: Batcher, batches: int, rows: int) -> None:
    batcher.num_batches += batches
    batcher.num_rows += batches * rows
    batcher.busy_s += batches * (PER_BATCH_S + rows * PER_ROW_S)


def test_limits_follow_the_cost_of_batches(clock: Clock) -> None:
    batcher: Batcher = Batcher(nothing)
    job, policy = ServingJob(batcher, most_rows=1000, clock=clock), PromisePolicy(0.020, most_rows=1000)
    guard = Guard(job.space)
    job.apply(policy.start(job.space, job.observe()).values)
    assert batcher.most_rows == FIRST_ROWS
    for batches, rows in [(10, 1), (5, 30), (20, 4), (7, 64)]:
        clock.now += 1.0
        serve(batcher, batches, rows)
        observation = job.observe()
        assert observation.rate_per_s == batches * rows
        job.apply(guard.check(observation, policy.decide(observation)).values)
    assert batcher.most_rows == 80  # (10 ms - 2 ms) / 0.1 ms
    assert batcher.most_waiting_rows == 140  # (18 ms - 2 * 2 ms) / 0.1 ms
    clock.now += 1.0
    observation = job.observe()
    assert policy.decide(observation).reason == "no requests"
    assert observation.values == {BATCH_ROWS: 80, WAITING_ROWS: 140}


def test_limits_that_hardly_change_stay(clock: Clock) -> None:
    batcher: Batcher = Batcher(nothing)
    job, policy = ServingJob(batcher, most_rows=1000, clock=clock), PromisePolicy(0.020, most_rows=1000)
    batcher.most_rows, batcher.most_waiting_rows = 98, 140
    serve(batcher, 10, 10)
    clock.now += 1.0
    job.observe()
    for batches, rows in [(10, 1), (5, 30)]:
        serve(batcher, batches, rows)
        clock.now += 1.0
        proposal = policy.decide(job.observe())
    batcher.most_rows = 79
    serve(batcher, 7, 64)
    proposal = policy.decide(job.observe())
    assert proposal.values == {}
    assert "80 rows take 10.0 of 20 ms" in proposal.reason
