"""Recorded counters of pipelines whose limit is known, and the verdict that `explain` must give."""

from dataclasses import replace
from typing import Any

import pytest

from headrace.tuning.explaining import explain, total
from headrace.tuning.observation import Observation, StageObservation
from headrace.tuning.run_limit import limit_of_run
from headrace.tuning.space import Space
from headrace.tuning.verdicts import LIMITS


def stage(
    name: str, *, cpu_s: float = 0.0, blocked_s: float = 0.0, workers: int = 2, **values: Any
) -> StageObservation:
    """Ten seconds of a stage with 100 services."""
    given: dict[str, Any] = {"services": 100, "busy_s": cpu_s, "wall_s": cpu_s + blocked_s, **values}
    return StageObservation(name=name, workers=workers, **given)


def ten_seconds(*stages: StageObservation, waited: float, cpus: float = 2.0, **values: Any) -> Observation:
    """Ten seconds in which the trainer took 100 batches and waited for a share of the time."""
    times = {"window_s": 10.0, "starved_s": 10.0 * waited, "consumer_s": 10.0 * (1.0 - waited)}
    return Observation(time_s=10.0, delivered=100, cpus=cpus, stages=stages, **{**times, **values})


IDLE = stage("batch", cpu_s=0.01)
SLOW_READS = stage("source", cpu_s=0.3, blocked_s=19.0)
GIB = float(1 << 30)

SCENARIOS = {
    "a trainer that waits 7 % of the time, though its files are slow": (
        ten_seconds(SLOW_READS, IDLE, waited=0.07),
        ("consumer", "source"),
    ),
    "a trainer that never waits, on a machine that is full": (
        ten_seconds(
            SLOW_READS, IDLE, waited=0.0, machine_busy_ratio=1.0, memory_limit_bytes=GIB, memory_used_bytes=GIB
        ),
        ("consumer", "source"),
    ),
    "slow storage": (ten_seconds(SLOW_READS, IDLE, waited=0.8), ("storage", "source")),
    "slow storage, while threads wait for a CPU now and then": (
        ten_seconds(SLOW_READS, IDLE, waited=0.8, queued_s=2.0, machine_busy_ratio=0.95),
        ("storage", "source"),
    ),
    "threads that are ready to run, but have no CPU": (
        ten_seconds(SLOW_READS, IDLE, waited=0.8, queued_s=16.0),
        ("CPUs", "source"),
    ),
    "a machine that is full, where nothing tells what threads wait for": (
        ten_seconds(SLOW_READS, IDLE, waited=0.8, machine_busy_ratio=0.97),
        ("CPUs", "source"),
    ),
    "a source in memory whose threads are blocked": (
        ten_seconds(replace(SLOW_READS, reads=False), IDLE, waited=0.8),
        ("waiting", "source"),
    ),
    "a function that sleeps": (
        ten_seconds(stage("source", cpu_s=0.1), stage("map", cpu_s=0.2, blocked_s=19.0), waited=0.9),
        ("waiting", "map"),
    ),
    "a function in processes that asks a service": (
        ten_seconds(stage("source", cpu_s=0.1), stage("map", blocked_s=19.0, in_processes=True), waited=0.9),
        ("waiting", "map"),
    ),
    "worker processes that are ready to run, but have no CPU": (
        ten_seconds(
            stage("source", cpu_s=0.1),
            stage("map", cpu_s=0.5, blocked_s=19.0, in_processes=True, queued_s=16.0),
            waited=0.9,
        ),
        ("CPUs", "map"),
    ),
    "worker processes that ask a service, on a machine that is full": (
        ten_seconds(
            stage("source", cpu_s=0.1),
            stage("map", blocked_s=19.0, in_processes=True, queued_s=1.0),
            waited=0.9,
            machine_busy_ratio=0.97,
        ),
        ("waiting", "map"),
    ),
    "worker processes on a machine that is full, where nothing tells what they wait for": (
        ten_seconds(
            stage("source", cpu_s=0.1),
            stage("map", blocked_s=19.0, in_processes=True),
            waited=0.9,
            machine_busy_ratio=0.97,
        ),
        ("CPUs", "map"),
    ),
    "a source at its end, and a slow function behind it": (
        ten_seconds(
            stage("source", services=0, workers=1),
            stage("map", cpu_s=9.0, blocked_s=0.5, workers=1),
            waited=0.9,
            cpus=8,
        ),
        ("workers", "map"),
    ),
    "one worker that always computes, and free CPUs": (
        ten_seconds(stage("source", cpu_s=0.1), stage("map", cpu_s=9.8, workers=1), waited=0.9, cpus=4),
        ("workers", "map"),
    ),
    "CPUs that the pipeline keeps busy": (
        ten_seconds(stage("source", cpu_s=0.1), stage("map", cpu_s=19.0), waited=0.9),
        ("CPUs", "map"),
    ),
    "stages that do next to nothing while CPUs are 3 % busy": (
        ten_seconds(stage("source", cpu_s=0.4, blocked_s=0.1, services=4), stage("map", cpu_s=0.2), waited=0.6),
        ("overhead", "source"),
    ),
    "services shorter than handing over": (
        ten_seconds(stage("source", cpu_s=0.02), stage("map", cpu_s=0.03), waited=0.6),
        ("overhead", "map"),
    ),
    "threads that share Python's lock": (
        ten_seconds(
            stage("source", cpu_s=0.1), stage("map", cpu_s=9.0, blocked_s=10.5), waited=0.9, cpus=4, gil_wait_s=0.01
        ),
        ("GIL", "map"),
    ),
    "memory that is full": (
        ten_seconds(SLOW_READS, IDLE, waited=0.8, memory_limit_bytes=GIB, memory_used_bytes=0.9 * GIB),
        ("memory", "source"),
    ),
    "a budget that is too small": (
        ten_seconds(replace(SLOW_READS, wait_memory_s=6.0), IDLE, waited=0.8, budget_bytes=GIB, in_flight_bytes=GIB),
        ("memory", "source"),
    ),
    "workers that came late, by their own account always at work": (
        ten_seconds(
            stage("source", cpu_s=0.1),
            stage("map", cpu_s=9.0, workers=8, wait_input_s=0.5, wait_output_s=0.5),
            waited=0.9,
            cpus=16,
        ),
        ("workers", "map"),
    ),
}


@pytest.mark.parametrize(("seen", "expected"), SCENARIOS.values(), ids=SCENARIOS.keys())
def test_the_verdict_of_a_known_scenario(seen: Observation, expected: tuple[str, str]) -> None:
    found = explain([seen], Space(()))
    limit, name = expected
    assert found.limit == limit, found.reason
    assert limit == "consumer" or found.stage == name
    assert (found.starved_s, found.consumer_s) == (seen.starved_s, seen.consumer_s)


def test_every_verdict_has_a_scenario() -> None:
    assert {limit for _, (limit, _) in SCENARIOS.values()} == set(LIMITS)


def test_a_short_last_window_does_not_outweigh_the_run() -> None:
    fed = ten_seconds(SLOW_READS, IDLE, waited=0.02)
    start = replace(ten_seconds(SLOW_READS, IDLE, waited=0.9), window_s=0.5, starved_s=0.45, consumer_s=0.05)
    assert explain([fed, fed, start], Space(())).limit == "consumer"
    assert explain([start], Space(())).limit == "storage"
    assert explain([start], Space(()), whole=total([fed, start])).limit == "consumer"


def test_one_worker_more_gains_where_a_stage_waits_and_nothing_where_the_trainer_does_not() -> None:
    waits, fed = (SCENARIOS[name][0] for name in ("a function that sleeps", next(iter(SCENARIOS))))
    assert explain([waits], Space(())).worker_gain == pytest.approx(0.5, rel=0.05)
    assert explain([fed], Space(())).worker_gain == 0.0


def explained(limit: str, starved_s: float, consumer_s: float, *, ended: bool = True, text: str = "") -> dict[str, Any]:
    return {"limit": limit, "starved_s": starved_s, "consumer_s": consumer_s, "ended": ended, "text": text or limit}


def test_a_run_whose_trainer_hardly_waited_is_limited_by_it_whatever_its_last_window_says() -> None:
    found = limit_of_run([explained("consumer", 1.0, 99.0, text="long"), explained("storage", 0.4, 0.1)])
    assert found is not None
    assert (found.limit, found.example) == ("consumer", explained("consumer", 1.0, 99.0, text="long"))
    assert str(found) == (
        "over the run: consumer; the trainer waited for batches 1.4% of the time: the training step is the limit"
    )


def test_a_run_is_limited_by_what_cost_it_most_and_shows_the_window_that_lost_most() -> None:
    windows = [
        explained("storage", 30.0, 10.0, text="worst"),
        explained("storage", 20.0, 10.0),
        explained("CPUs", 40.0, 10.0),
        explained("consumer", 0.0, 10.0),
    ]
    found = limit_of_run(windows)
    assert found is not None
    assert found.example is windows[0]
    assert str(found) == (
        "over the run: storage; the trainer waited for batches 69.2% of the time, 56% of it in windows with this limit"
    )


def test_of_a_window_that_is_going_on_the_newest_explanation_counts_once() -> None:
    going_on = [explained("storage", seconds, seconds, ended=False) for seconds in (30.0, 60.0)]
    ended = explained("CPUs", 70.0, 70.0)
    for windows in ([*going_on, ended], [ended, *going_on]):
        found = limit_of_run(windows)
        assert found is not None
        assert found.limit == "CPUs"
    found = limit_of_run([*going_on, replace_limit(ended, "storage"), explained("CPUs", 80.0, 80.0, ended=False)])
    assert found is not None
    assert found.limit == "CPUs"


def replace_limit(given: dict[str, Any], limit: str) -> dict[str, Any]:
    return {**given, "limit": limit}


def test_explanations_that_do_not_tell_their_time_give_no_verdict_of_the_run() -> None:
    assert limit_of_run([]) is None
    assert limit_of_run([{"limit": "storage", "text": "limit: storage"}]) is None
