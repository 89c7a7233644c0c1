"""The environment over a real pipeline: Gymnasium's checker, and actions that are really carried out."""

import threading
import time
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


def nap(rows: pa.RecordBatch) -> pa.RecordBatch:
    time.sleep(0.005)
    return rows


def pipeline(num_items: int = 20) -> Pipeline:
    return from_source(SyntheticSource([[(50, 0, 0)] * 5] * num_items)).map(nap)


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


def test_more_workers_at_the_slow_stage_earn_more_in_a_live_episode() -> None:
    twelve = cast(Resources, SimpleNamespace(cpus=SimpleNamespace(count=12), memory=effective_resources().memory))
    episodes = LiveEpisodes(pipeline(num_items=1000), 1000.0, resources=lambda: twelve)
    env = TuningEnv(episodes, episodes.num_stages, window_s=0.4, max_steps=12)
    keep, fewer, more = (np.array([STEPS.index(0), STEPS.index(step)]) for step in (0, -5, 5))
    with closing(env):
        _, info = env.reset(seed=0)
        assert info["values"][workers_of("map")] == 6
        earned = []
        for _ in range(4):  # of which one must find the machine free enough to tell
            env.step(fewer)
            _, least, _, _, info = env.step(keep)
            assert info["values"][workers_of("map")] == 1
            _, most, _, _, info = env.step(more)
            assert info["values"][workers_of("map")] == 6
            earned.append((least, most))
            if most > 1.5 * least > 0:
                break
        else:
            pytest.fail(f"earned with 1 worker and with 6: {earned}")
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
    episodes = LiveEpisodes(pipeline(num_items=2), 100.0, consumer_s=0.001)
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
