"""The environment over a real pipeline: Gymnasium's checker, and actions that are really carried out."""

import threading
from contextlib import closing
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from headrace.errors import ConfigError
from headrace.pipeline import Pipeline, from_source
from headrace.resources import Resources, effective_resources
from headrace.testing.pipelines import SyntheticSource
from headrace.tuning.features import STEPS
from headrace.tuning.live_episodes import LiveEpisodes
from headrace.tuning.space import workers_of

pytest.importorskip("gymnasium")
from gymnasium.utils.env_checker import check_env

from headrace.tuning.env import TuningEnv


def same(rows: pa.RecordBatch) -> pa.RecordBatch:
    return rows


def pipeline(num_splits: int = 20) -> Pipeline:
    return from_source(SyntheticSource([[(50, 0, 0)] * 5] * num_splits)).map(same, name="map")


@pytest.mark.filterwarnings("ignore:.*not deterministic.*")
@pytest.mark.parametrize("heads", ["joint", "factored"])
@pytest.mark.parametrize("view", ["published", "stages"])
def test_gymnasium_accepts_the_live_environment(heads: Any, view: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # The checker asks for the same observation from the same seed, which no real machine gives.
    monkeypatch.setattr("gymnasium.utils.env_checker.data_equivalence", lambda *both, **how: True)
    episodes = LiveEpisodes(pipeline(), 1000.0)
    env = TuningEnv(episodes, episodes.num_stages, view=view, heads=heads, window_s=0.02, max_steps=3)
    check_env(env, skip_render_check=True)
    env.close()


def test_the_actions_of_a_live_episode_are_carried_out() -> None:
    twelve = cast(Resources, SimpleNamespace(cpus=SimpleNamespace(count=12), memory=effective_resources().memory))
    episodes = LiveEpisodes(pipeline(num_splits=1000), 1000.0, resources=lambda: twelve)
    env = TuningEnv(episodes, episodes.num_stages, window_s=0.02, max_steps=12)
    keep, fewer, more = (np.array([STEPS.index(0), STEPS.index(step)]) for step in (0, -5, 5))
    with closing(env):
        _, info = env.reset(seed=0)
        assert info["values"][workers_of("map")] == 6
        found = [env.step(action)[4]["values"][workers_of("map")] for action in (fewer, keep, more, keep)]
        assert found == [1, 1, 6, 6]
    with pytest.raises(ConfigError, match="before reset, or after close"):
        env.step(keep)


def test_an_episode_is_truncated_after_its_steps() -> None:
    episodes = LiveEpisodes(pipeline(), 1000.0)
    env = TuningEnv(episodes, episodes.num_stages, window_s=0.02, max_steps=2)
    with closing(env):
        env.reset(seed=0)
        assert [env.step(np.array([2, 2]))[3] for _ in range(2)] == [False, True]


def test_an_episode_ends_with_its_pipeline() -> None:
    before = threading.active_count()
    episodes = LiveEpisodes(pipeline(num_splits=2), 100.0, consumer_s=0.001)
    env = TuningEnv(episodes, episodes.num_stages, window_s=0.1)
    env.reset(seed=0)
    env.step(np.array([2, 2]))  # meanwhile the batches have ended, and begun again
    env.reset(seed=0)
    env.close()
    env.close()
    assert threading.active_count() == before


def test_a_pipeline_that_fails_ends_the_episode_with_its_error() -> None:
    def fail(rows: pa.RecordBatch) -> pa.RecordBatch:
        raise ValueError("not like this")

    env = TuningEnv(LiveEpisodes(from_source(SyntheticSource([[(5, 0, 0)]])).map(fail), 1.0), 2, window_s=0.1)
    with pytest.raises(Exception, match="not like this"):
        env.reset(seed=0)
    env.close()
