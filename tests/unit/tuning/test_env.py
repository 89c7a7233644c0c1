"""The environment: Gymnasium's own checker, the reward's constraints, and what actions do."""

import sys
from typing import Any

import numpy as np
import pytest

from headrace.errors import MissingExtra
from headrace.simulation import Machine, PipelineSpec, StageSpec
from headrace.tuning.episodes import draw_job, draw_pipeline, latency_split
from headrace.tuning.features import STEPS, features, num_features, step_workers
from headrace.tuning.job import SimulatedJob
from headrace.tuning.observation import Observation
from headrace.tuning.reward import reward
from headrace.tuning.space import workers_of

pytest.importorskip("gymnasium")
from gymnasium.utils.env_checker import check_env

from headrace.testing.virtual_engine import VirtualEngine
from headrace.tuning.env import TuningEnv


def two_stages(random: np.random.Generator) -> tuple[SimulatedJob, float]:
    spec = PipelineSpec(stages=(StageSpec(name="a", cpu_s=0.1), StageSpec(name="b", cpu_s=0.3)))
    return SimulatedJob(spec, Machine.fixed(4)), 10.0


@pytest.mark.parametrize("heads", ["joint", "factored"])
@pytest.mark.parametrize("view", ["published", "stages"])
def test_gymnasium_accepts_the_environment(heads: Any, view: Any) -> None:
    env = TuningEnv(lambda random: draw_job(3, random), 3, view=view, heads=heads, max_steps=5)
    check_env(env, skip_render_check=True)


def test_the_optimal_action_earns_the_full_reward_and_episodes_are_cut_off() -> None:
    env = TuningEnv(two_stages, 2, max_steps=3, window_s=10.0)
    _, info = env.reset(seed=0)
    assert info["values"][workers_of("a")] == 2
    assert info["rate_per_s"] == pytest.approx(2 / 0.3, rel=0.05)
    rewards = [env.step(np.array([STEPS.index(x), STEPS.index(y)])) for x, y in ((-1, 1), (0, 0), (0, 0))]
    assert rewards[1][1] == pytest.approx(1.0, abs=0.05)
    assert [(terminated, truncated) for _, _, terminated, truncated, _ in rewards] == [(False, False)] * 2 + [
        (False, True)
    ]


def test_more_workers_at_the_slow_stage_earn_more_by_the_engine_s_rules() -> None:
    spec = PipelineSpec(stages=(StageSpec(name="read", cpu_s=0.01), StageSpec(name="map", cpu_s=0.001, io_s=0.049)))
    env = TuningEnv(lambda random: (VirtualEngine(spec, 12), 100.0), 2, window_s=10.0, max_steps=12)
    keep, fewer, more = (np.array([STEPS.index(0), STEPS.index(step)]) for step in (0, -5, 5))
    _, info = env.reset(seed=0)
    assert info["values"][workers_of("map")] == 6
    rewards, rates = [], []
    for action in (fewer, keep, more, keep):
        _, reward, _, _, info = env.step(action)
        rewards.append(reward)
        rates.append(info["rate_per_s"])
    assert rates[1] == pytest.approx(1 / 0.05, rel=0.01)
    assert rates[3] == pytest.approx(6 / 0.05, rel=0.01)
    assert rewards[3] > 1.5 * rewards[1] > 0


def test_a_joint_action_is_the_digits_of_its_number() -> None:
    joint = TuningEnv(two_stages, 2, heads="joint")
    factored = TuningEnv(two_stages, 2, heads="factored")
    for env, action in ((joint, 1 * 5 + 3), (factored, np.array([1, 3]))):
        env.reset(seed=0)
        _, _, _, _, info = env.step(action)
        assert (info["values"][workers_of("a")], info["values"][workers_of("b")]) == (1, 3)


# ---- the three constraints on the reward that InTune's text states


def test_reward_follows_the_rate_and_the_memory_and_nothing_else() -> None:
    assert reward(5, 0.3, 10) < reward(6, 0.3, 10) < reward(10, 0.3, 10)
    assert reward(5, 0.3, 10) > reward(5, 0.8, 10)
    assert reward(20, 0.3, 10) == reward(10, 0.3, 10)  # more than the model takes is worth no more


def test_memory_hardly_matters_while_prefetching_is_moderate() -> None:
    assert reward(5, 0.5, 10) > 0.99 * reward(5, 0.0, 10)


def test_reward_goes_to_zero_as_memory_runs_out() -> None:
    values = [reward(10, memory, 10) for memory in (0.9, 0.99, 0.999, 1.0, 1.2)]
    assert values == sorted(values, reverse=True)
    assert values[-2:] == [0.0, 0.0]
    assert reward(10, 0.9, 10) < 0.6


# ---- state and actions


def test_the_published_state_has_six_factors_and_knows_no_stage() -> None:
    job, _ = two_stages(np.random.default_rng(0))
    job.run(5)
    seen = job.observe()
    assert features(seen, "published").shape == (num_features(2, "published"),) == (6,)
    assert features(seen, "stages").shape == (num_features(2, "stages"),) == (14,)
    assert features(seen, "published")[1] == pytest.approx((4 - 2) / 4)


def test_actions_never_hand_out_more_cpus_than_there_are() -> None:
    job, _ = two_stages(np.random.default_rng(0))
    seen = Observation(time_s=0, window_s=1, stages=(), values={"a.workers": 2, "b.workers": 2}, cpus=6)
    most = STEPS.index(5)
    assert step_workers(job.space, seen, [most, most]) == {"a.workers": 4, "b.workers": 2}
    assert step_workers(job.space, seen, [0, most]) == {"a.workers": 1, "b.workers": 5}
    shrunk = Observation(time_s=0, window_s=1, stages=(), values={"a.workers": 8, "b.workers": 2}, cpus=4)
    assert sum(step_workers(job.space, shrunk, [2, 2]).values()) == 4


def test_drawn_pipelines_vary_around_the_published_split() -> None:
    random = np.random.default_rng(0)
    for length in range(3, 8):
        drawn = np.array([[s.cpu_s for s in draw_pipeline(length, random).stages] for _ in range(300)])
        shares = drawn / drawn.sum(1, keepdims=True)
        assert shares.mean(0) == pytest.approx(latency_split(length), abs=0.03)
        assert shares.std(0).max() > 0.05


def test_without_gymnasium_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    monkeypatch.delitem(sys.modules, "headrace.tuning.env")
    with pytest.raises(MissingExtra, match=r"headrace\[tune\]"):
        import headrace.tuning.env  # noqa: F401
