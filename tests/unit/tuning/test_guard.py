"""The guard: bounded steps, memory first, undoing."""

from dataclasses import replace

from headrace.simulation import Machine, published_pipeline
from headrace.tuning.guard import Guard
from headrace.tuning.job import SimulatedJob
from headrace.tuning.observation import Observation, StageObservation
from headrace.tuning.policies import Proposal
from headrace.tuning.space import PREFETCH, Knob, Space, workers_of

SPACE = Space((Knob("map.workers", 1, 256, "workers"), Knob(PREFETCH, 0, 1024, "elements")))


def seen(
    rate: float, *, workers: int = 8, prefetch: int = 2, cpus: float = 16, memory: float = 0.1, starved: float = 1.0
) -> Observation:
    return Observation(
        time_s=0.0,
        window_s=1.0,
        stages=(),
        values={"map.workers": workers, PREFETCH: prefetch},
        delivered=int(rate),
        starved_s=starved,
        cpus=cpus,
        memory_limit_bytes=1000,
        memory_used_bytes=1000 * memory,
    )


def ask(**values: int) -> Proposal:
    return Proposal({name.replace("_", "."): value for name, value in values.items()}, "because")


NOTHING = Proposal(reason="no reason to change")


def test_a_value_grows_by_a_bounded_factor() -> None:
    assert Guard(SPACE).check(seen(100), ask(map_workers=200)).values == {"map.workers": 32}
    assert Guard(SPACE).check(seen(100, workers=1), ask(map_workers=200)).values == {"map.workers": 9}
    assert Guard(SPACE).check(seen(100, workers=100), ask(map_workers=1)).values == {"map.workers": 25}


def test_nothing_is_raised_when_memory_is_short_but_prefetch_may_shrink() -> None:
    proposal = Guard(SPACE).check(seen(100, memory=0.95, prefetch=64), ask(map_workers=16, prefetch=1))
    assert proposal.values == {PREFETCH: 1}
    refused = Guard(SPACE).check(seen(100, memory=0.95), ask(map_workers=16))
    assert not refused.values
    assert refused.reason.startswith("refused, because 95% of the memory is in use")


def test_values_outside_the_limits_are_clipped_and_unknown_knobs_left_out() -> None:
    proposal = Guard(SPACE).check(seen(100, workers=200), ask(map_workers=1000, other_workers=3))
    assert proposal.values == {"map.workers": 256}


def test_a_change_that_hurts_is_undone_and_then_there_is_a_pause() -> None:
    guard = Guard(SPACE)
    assert guard.check(seen(100), ask(map_workers=16)).values
    assert not guard.check(seen(60, workers=16), NOTHING).values  # the window of the change itself
    assert not guard.check(seen(60, workers=16), NOTHING).values
    undone = guard.check(seen(60, workers=16), NOTHING)
    assert undone.values == {"map.workers": 8}
    assert undone.reason == "rate fell from 100 to 60 per second: undone"
    assert not guard.check(seen(100), ask(map_workers=16)).values


def test_a_consumer_that_was_fed_is_not_starved_even_a_little() -> None:
    guard = Guard(SPACE)
    guard.check(seen(100, starved=0.0), ask(map_workers=4))
    after = [guard.check(seen(93, workers=4, starved=0.3), NOTHING) for _ in range(3)]
    assert after[-1].values == {"map.workers": 8}


def test_nothing_but_the_budget_is_raised_while_elements_wait_for_room_in_it() -> None:
    space = Space((*SPACE.knobs, Knob("memory", 1, 1 << 30, "bytes")))
    stage = StageObservation(name="map", workers=8, services=9, busy_s=0.1, wall_s=0.1, wait_memory_s=0.6)
    held = replace(seen(100), stages=(stage,), values={"map.workers": 8, PREFETCH: 2, "memory": 1000})
    proposal = Guard(space).check(held, ask(map_workers=16, prefetch=8, memory=2000))
    assert proposal.values == {"memory": 2000}
    fewer = Guard(space).check(held, ask(map_workers=4))
    assert fewer.values == {"map.workers": 4}
    refused = Guard(space).check(held, ask(map_workers=16))
    assert refused.reason == "refused, because elements wait for room in the memory budget: because"


class Harmful:
    """A policy that leaves every stage one worker, again and again."""

    def start(self, space: Space, observation: Observation) -> Proposal:
        self.one = {workers_of(stage): 1 for stage, _ in space.worker_knobs()}
        return Proposal(reason="this is the start")

    def decide(self, observation: Observation) -> Proposal:
        return Proposal(self.one, "one each")


def test_a_harmful_policy_costs_a_guarded_job_a_bounded_share_of_its_rate() -> None:
    def delivered(guarded: bool) -> int:
        job, policy = SimulatedJob(published_pipeline(), Machine.fixed(32)), Harmful()
        job.apply({workers_of(stage): 16 for stage, _ in job.space.worker_knobs()})
        guard = Guard(job.space)
        policy.start(job.space, job.observe())
        total = 0
        for _ in range(60):
            total += job.run(1.0)
            seen = job.observe()
            proposal = policy.decide(seen)
            job.apply((guard.check(seen, proposal) if guarded else proposal).values)
        return total

    best = SimulatedJob(published_pipeline(), Machine.fixed(32))
    best.apply({workers_of(stage): 16 for stage, _ in best.space.worker_knobs()})
    possible = best.run(60.0)
    assert delivered(guarded=True) > 0.7 * possible
    assert delivered(guarded=False) < 0.3 * possible


def test_a_change_that_does_not_hurt_stays() -> None:
    guard = Guard(SPACE)
    guard.check(seen(100), ask(map_workers=16))
    assert not any(guard.check(seen(95, workers=16), NOTHING).values for _ in range(5))


def test_a_slower_consumer_is_not_the_change_s_fault() -> None:
    guard = Guard(SPACE)
    guard.check(seen(100), ask(map_workers=16))
    assert not any(guard.check(seen(60, workers=16, starved=0.0), NOTHING).values for _ in range(5))


def test_a_rate_from_before_a_resize_judges_nothing() -> None:
    guard = Guard(SPACE)
    guard.check(seen(100), ask(map_workers=16))
    assert not any(guard.check(seen(50, workers=16, cpus=8), NOTHING).values for _ in range(5))


def test_what_a_resize_calls_for_is_not_judged_by_the_window_in_which_it_came() -> None:
    guard = Guard(SPACE)
    guard.check(seen(100), NOTHING)
    assert guard.check(seen(90, cpus=8), ask(map_workers=4)).values == {"map.workers": 4}
    assert not any(guard.check(seen(50, workers=4, cpus=8), NOTHING).values for _ in range(5))
    guard.check(seen(50, workers=4, cpus=8), ask(map_workers=2))
    for _ in range(3):
        last = guard.check(seen(20, workers=2, cpus=8), NOTHING)
    assert last.values == {"map.workers": 4}


def test_a_resize_ends_the_pause() -> None:
    guard = Guard(SPACE)
    guard.check(seen(100), ask(map_workers=16))
    for _ in range(3):
        last = guard.check(seen(60, workers=16), NOTHING)
    assert last.reason.endswith("undone")
    assert guard.check(seen(60, cpus=64), ask(map_workers=16)).values == {"map.workers": 16}


def test_changes_that_follow_each_other_are_undone_together() -> None:
    guard = Guard(SPACE)
    guard.check(seen(100), ask(map_workers=16))
    guard.check(seen(90, workers=16), ask(map_workers=32))
    for _ in range(2):
        assert not guard.check(seen(50, workers=32), NOTHING).values
    assert guard.check(seen(50, workers=32), NOTHING).values == {"map.workers": 8}
