"""The `scheduler:` section: names of policies, and policies of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.errors import ConfigError
from headrace.scheduling.config import SchedulerConfig
from headrace.scheduling.policies import RECS, RECS_EARLY, SERIAL, BatchPrefetch

OWN = """
from headrace.scheduling.policies import SERIAL, StepwisePolicy

MINE = StepwisePolicy("mine", 2, SERIAL.strategies, SERIAL.rules)


class NotAPolicy:
    name = "half"
"""


def config(values: object) -> SchedulerConfig:
    return SchedulerConfig.from_dict(values, where="job: scheduler")


def test_auto_pulls_early_over_shards_and_is_no_scheduler_otherwise() -> None:
    assert SchedulerConfig().choose(remote=True) == RECS_EARLY
    assert SchedulerConfig().choose(remote=True, alone=False) == RECS
    assert SchedulerConfig().choose(remote=False) is None


def test_with_several_trainers_early_pulls_are_not_exact_so_recs_takes_their_place() -> None:
    assert config({"policy": "recs_early"}).choose(remote=True, alone=False) == RECS


def test_options_of_a_policy_are_those_of_the_job() -> None:
    prefetch = config({"policy": "batch_prefetch", "batches_ahead": 4, "threads": 3}).choose(remote=False)
    assert prefetch == BatchPrefetch(num_ahead=4, num_threads=3)
    serial = config({"policy": "serial", "batches_ahead": 0}).choose(remote=False)
    assert serial is not None
    assert serial.num_ahead == SERIAL.num_ahead == 1


def test_an_unknown_policy_is_refused_with_the_name_most_like_it() -> None:
    with pytest.raises(ConfigError, match=r"policy: given 'resc'.*package.module:name \(did you mean recs\?\)"):
        config({"policy": "resc"})


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_scheduling.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("own")
def test_a_policy_of_ones_own_is_named_by_its_module() -> None:
    policy = config({"policy": "own_scheduling:MINE"}).choose(remote=False)
    assert policy is not None
    assert (policy.name, policy.num_ahead) == ("mine", 2)
    further = config({"policy": "own_scheduling:MINE", "batches_ahead": 4}).choose(remote=False)
    assert further is not None
    assert further.num_ahead == 4


@pytest.mark.usefixtures("own")
def test_what_is_no_policy_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"own_scheduling:NotAPolicy has no num_ahead, strategies, num_workers, choose"
    ):
        config({"policy": "own_scheduling:NotAPolicy"}).choose(remote=False)
