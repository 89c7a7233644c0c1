"""Every policy: the protocol, the baselines' own rules, and that ours wins."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from headrace.errors import ConfigError
from headrace.registry import TUNERS
from headrace.simulation import (
    LATENCY_SPLIT,
    PUBLISHED_CPUS,
    Distribution,
    Drift,
    Machine,
    PipelineSpec,
    StageSpec,
    published_machine,
    published_pipeline,
)
from headrace.tuning import (
    Observation,
    SimulatedJob,
    StageObservation,
    make_policy,
    recovery_times,
    run_trial,
)
from headrace.tuning.policies import Auto, Autotune, Oracle, Plumber, Relaunched
from headrace.tuning.policies.autotune import ModelNode, output_time, wait_time
from headrace.tuning.policies.oracle import best_setting, true_rates
from headrace.tuning.rates import fluid_rate
from headrace.tuning.space import PREFETCH, THREADS, workers_of

PHASE_S = 30.0
SCHEDULE = published_machine(PHASE_S)
WHOLE_S = PHASE_S * len(PUBLISHED_CPUS)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", sorted(TUNERS))
def test_every_policy_runs_and_gives_reasons(name: str) -> None:
    trial = run_trial(
        lambda: make_policy(name), published_pipeline(1.0), SCHEDULE, duration_s=WHOLE_S, tick_s=1.0, restart_s=2
    )
    assert trial.delivered > 0
    assert all(proposal.reason for _, proposal in trial.proposals)


def test_an_unknown_policy_is_named_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"given tuner 'best', expected one of auto, .*plumber"):
        make_policy("best")


# ---- baselines


def test_wait_time_is_that_of_a_finite_queue() -> None:
    assert wait_time(0.0, 1.0, 3) == 0.0
    assert wait_time(2.0, 0.0, 3) == 2.0
    assert wait_time(1.0, 1.0, 3) == pytest.approx(1 / 4)
    for producer, consumer in ((1.0, 2.0), (2.0, 1.0)):
        x = consumer / producer
        assert wait_time(producer, consumer, 3) == pytest.approx(producer * (1 - x) / (1 - x**4))


def test_output_time_of_a_chain_can_be_worked_out_by_hand() -> None:
    nodes = [ModelNode("read", 0.3, 1.0, 0.0, 1), ModelNode("map", 0.6, 1.0, 0.0, 8)]
    # map: own time 0.6 / 2; it asks every 0.3 s, the source needs 0.3 s: a buffer of 2 is empty 1 time in 3.
    assert output_time(nodes, {"map": 2.0}) == pytest.approx(0.3 + 0.3 / 3)


def test_autotune_doubles_its_period_and_keeps_the_cpus_it_started_with() -> None:
    trial = run_trial(Autotune, published_pipeline(), SCHEDULE, duration_s=WHOLE_S)
    times = [time for time, proposal in trial.proposals if proposal.reason.startswith("max_parallelism")]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert gaps[-3:] == pytest.approx([20.48, 40.96, 60.0], abs=0.6)
    asked = [proposal.values for _, proposal in trial.proposals if proposal.values]
    assert max(value for values in asked for name, value in values.items() if name.endswith(".workers")) == 32
    assert asked[0][THREADS] == 32


def test_autotune_uses_wall_time_over_the_whole_life() -> None:
    job = SimulatedJob(published_pipeline(), SCHEDULE)
    policy = Autotune("hill_climb")
    policy.start(job.space, job.observe())

    def window(time_s: float, wall_s: float) -> Observation:
        stages = tuple(
            StageObservation(name=n, workers=1, services=100, busy_s=1.0, wall_s=wall_s if n == "map" else 1.0)
            for n in LATENCY_SPLIT
        )
        return Observation(time_s=time_s, window_s=1.0, stages=stages, delivered=100, cpus=32)

    before = policy.decide(window(1000.0, 50.0)).values[workers_of("map")]
    after = policy.decide(window(2000.0, 1.0)).values[workers_of("map")]
    assert after > 2  # a thousand fast seconds later half of what it knows is still the slow window
    assert before >= after


def test_plumber_solves_once_and_stays_there() -> None:
    trial = run_trial(Plumber, published_pipeline(0.5), SCHEDULE, duration_s=WHOLE_S)
    solved = [(time, p) for time, p in trial.proposals if "linear program" in p.reason]
    assert len(solved) == 1
    assert sum(v for k, v in solved[0][1].values.items() if k.endswith(".workers")) <= 32


def test_relaunched_pays_for_the_relaunch_and_gets_the_new_cpus() -> None:
    still = run_trial(Autotune, published_pipeline(), SCHEDULE, duration_s=WHOLE_S)
    again = run_trial(lambda: Relaunched(Autotune), published_pipeline(), SCHEDULE, duration_s=WHOLE_S, restart_s=3)
    relaunches = [time for time, proposal in again.proposals if proposal.relaunch]
    assert relaunches == [30, 60, 90, 120]
    assert sum(again.per_tick[60:66]) == 0
    assert again.delivered > 1.5 * still.delivered


def test_best_setting_reaches_the_bound_where_service_times_are_constant() -> None:
    for cpus in (3, 32, 128):
        _, rate = best_setting(published_pipeline(), cpus)
        assert rate == pytest.approx(fluid_rate(true_rates(published_pipeline()), cpus), rel=0.02)


def test_the_oracle_follows_drift() -> None:
    spec = published_pipeline(map={"drift": Drift(factor=3.0, start_s=10, end_s=10)})
    trial = run_trial(lambda: Oracle(spec), spec, Machine.fixed(32), duration_s=20)
    assert [time for time, proposal in trial.proposals if proposal.values] == [0.0, 10.0]


# ---- ours


def test_auto_reaches_97_percent_of_the_oracle_and_recovers_within_5_seconds() -> None:
    spec = published_pipeline(0.5)
    made = {**TUNERS, "oracle": lambda: Oracle(spec)}
    delivered = {}
    for name in ("auto", "oracle", "autotune", "autotune_adaptive", "even"):
        trial = run_trial(made[name], spec, SCHEDULE, duration_s=WHOLE_S, restart_s=3)
        delivered[name] = trial.delivered
        if name == "auto":
            best = [fluid_rate(true_rates(spec), cpus) for cpus in PUBLISHED_CPUS]
            recovery = recovery_times(trial, SCHEDULE, best)
            at_resizes = [p for time, p in trial.proposals if time in (PHASE_S, 2 * PHASE_S, 3 * PHASE_S)]
            assert all(p.values and p.reason.startswith("CPUs ") for p in at_resizes)
    assert delivered["auto"] >= 0.97 * delivered["oracle"]
    assert all(time is not None and time <= 5 for time in recovery)
    assert delivered["auto"] > 1.9 * delivered["autotune"]
    assert delivered["auto"] > 1.05 * delivered["autotune_adaptive"]
    assert delivered["auto"] > 1.9 * delivered["even"]


@pytest.mark.parametrize(
    ("options", "least"),
    [
        ({"map": {"contention": 0.02}}, 0.97),
        ({"load": {"io_s": 0.5}}, 0.97),
        ({"shuffle": {"max_workers": 1}}, 0.97),
        ({"map": {"drift": Drift(factor=2.5, start_s=50, end_s=50)}}, 0.97),
        ({"map": {"distribution": Distribution.LOGNORMAL, "spread": 2.0}}, 1.0),
    ],
    ids=["contention", "blocking", "sequential", "drift", "heavy tail"],
)
def test_auto_reaches_the_oracle_on_harder_pipelines(
    options: dict[str, dict[str, object]], least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of random times, one trial per setting instead of four makes this oracle 2 % worse, and five times faster.
    monkeypatch.setattr("headrace.tuning.policies.oracle.RANDOM_TRIALS", 1)
    spec = published_pipeline(0.5, **options)
    ours, best = (
        run_trial(make, spec, published_machine(20.0), duration_s=100, restart_s=3).delivered
        for make in (Auto, lambda: Oracle(spec))
    )
    assert ours >= least * best


def test_auto_uses_no_more_than_the_consumer_needs() -> None:
    spec = replace(published_pipeline(), consumer_s=0.02)
    trial = run_trial(Auto, spec, Machine.fixed(64), duration_s=60)
    assert sum(trial.per_tick[20:]) / 50 == pytest.approx(50, rel=0.02)
    job = SimulatedJob(spec, Machine.fixed(64))
    for _, proposal in trial.proposals:
        job.apply(proposal.values)
    held = sum(stage.workers for stage in job.observe().stages)
    assert held <= 30  # 12.5 CPUs are needed for 50 a second; an even split would hold 64


def test_auto_stays_within_memory_where_a_static_setting_runs_out() -> None:
    stages = tuple(
        StageSpec(
            name=n, cpu_s=s * 0.25, output_bytes=10e6, bytes_distribution=Distribution.LOGNORMAL, bytes_spread=0.5
        )
        for n, s in LATENCY_SPLIT.items()
    )
    spec = PipelineSpec(stages=stages, base_bytes=100e6, consumer_s=0.008)
    machine = Machine.fixed(64, memory_bytes=1.2e9)
    assert run_trial(lambda: make_policy("autotune"), spec, machine, duration_s=60).num_failures > 0
    assert run_trial(Auto, spec, machine, duration_s=60).num_failures == 0


def test_auto_undoes_a_probe_that_did_not_help() -> None:
    job = SimulatedJob(published_pipeline(), Machine.fixed(32))
    policy = Auto()
    values = dict(policy.start(job.space, job.observe()).values)
    reasons = []
    for tick in range(60):  # half the rate that the CPU times promise, whatever is done
        stages = tuple(
            StageObservation(
                name=name,
                workers=values[workers_of(name)],
                services=64,
                busy_s=64 * 0.25 * share,
                wall_s=64 * 0.25 * share,
            )
            for name, share in LATENCY_SPLIT.items()
        )
        seen = Observation(
            time_s=tick, window_s=1.0, stages=stages, values=dict(values), delivered=64, starved_s=1.0, cpus=32
        )
        before = dict(values)
        proposal = policy.decide(seen)
        if "trying more workers" in proposal.reason:
            settled = before
        values.update(proposal.values)
        reasons.append(proposal.reason)
        if proposal.reason.endswith("undone"):
            assert {k: v for k, v in values.items() if k != THREADS} == {
                k: v for k, v in settled.items() if k != THREADS
            }
    assert sum(reason.endswith("undone") for reason in reasons) == len(LATENCY_SPLIT)
    assert reasons[-1].startswith("more workers were tried at every stage")


def test_auto_does_not_change_its_mind_on_noise() -> None:
    noisy = {name: {"distribution": Distribution.EXPONENTIAL} for name in LATENCY_SPLIT}
    trial = run_trial(Auto, published_pipeline(**noisy), Machine.fixed(32), duration_s=120)
    assert sum("a different time per element" in p.reason for _, p in trial.proposals) <= 4
    assert PREFETCH not in {name for _, p in trial.proposals[40:] for name in p.values}


@pytest.mark.parametrize(("left", "workers"), [(0, 2), (1, 4), (None, 4)])
def test_a_source_gets_no_more_workers_when_it_has_nothing_left_to_begin(left: int | None, workers: int) -> None:
    job, policy = SimulatedJob(published_pipeline(), Machine.fixed(8)), Auto()
    policy.start(job.space, job.observe())
    seen = job.observe()
    source = replace(seen.stages[0], workers=2, services=0, busy_s=0.0, wall_s=0.0, left=left)
    idle = tuple(replace(stage, services=0, busy_s=0.0, wall_s=0.0) for stage in seen.stages[1:])
    proposal = policy.decide(replace(seen, window_s=1.0, stages=(source, *idle)))
    assert proposal.values.get(workers_of(source.name), 2) == workers
    assert ("no more splits to start" in proposal.reason) is (left == 0)
