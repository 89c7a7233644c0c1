"""Where rows are kept: what a job asks for, and what is possible."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from pydantic import ValidationError
from torch import nn

from headrace.embeddings import EmbeddingBags, EmbeddingsConfig
from headrace.errors import ConfigError
from headrace.placement.config import PlacementConfig
from headrace.placement.micro_batches import SPLITS
from headrace.scheduling.config import SchedulerConfig
from headrace.training import JobConfig
from headrace.training.process_group import SingleProcess
from headrace.training.sharded import ShardedTables, choose_placement, settle_placement
from headrace.training.stepping import choose_policy

TRUSTED = {"policy": "lookahead", "trusted_network": True}
HERE, THERE = ["127.0.0.1:1", "[::1]:2"], ["127.0.0.1:1", "10.0.0.2:2"]


def job_of(placement: Any, shards: list[str], **cluster: Any) -> JobConfig:
    values = {"run": "run", "data": {"path": "logs"}, "placement": placement}
    return JobConfig.model_validate(values | {"cluster": {"shards": shards, **cluster}})


@pytest.mark.parametrize(
    ("placement", "shards", "num_trainers", "reason"),
    [
        ("auto", HERE, 1, "lookahead: the only trainer keeps up to 512MiB of rows per table group"),
        ("auto", THERE, 1, "lookahead: the only trainer keeps up to 512MiB of rows per table group"),
        ("auto", HERE, 2, "lookahead: each trainer keeps up to 512MiB of rows per table group"),
        ("auto", THERE, 2, "none: trainers would exchange rows between machines without encryption"),
        ({"trusted_network": True}, THERE, 2, "lookahead: each trainer keeps up to 512MiB of rows per table group"),
        ("auto", [], 1, "none: rows are in this process"),
        ("none", HERE, 1, "none: as the job says"),
        ("lookahead", HERE, 2, "lookahead: each trainer keeps up to 512MiB of rows per table group"),
        (TRUSTED, THERE, 2, "lookahead: each trainer keeps up to 512MiB of rows per table group"),
        ("lookahead", HERE, 62, "lookahead: each trainer keeps up to 512MiB of rows per table group"),
    ],
)
def test_rows_are_kept_where_the_job_says(placement: Any, shards: list[str], num_trainers: int, reason: str) -> None:
    choice = choose_placement(job_of(placement, shards), num_trainers=num_trainers)
    assert choice.reason.startswith(reason)
    assert choice.keeps_rows == reason.startswith("lookahead")


@pytest.mark.parametrize(
    ("shards", "num_trainers", "cluster", "reason"),
    [
        (
            THERE,
            2,
            {},
            "trainers would exchange rows between machines without encryption, see placement.trusted_network",
        ),
        (HERE, 63, {}, "there are more than 62 trainers"),
        (HERE, 2, {"rows": "bf16"}, "cluster.rows is bf16"),
        (HERE, 2, {"staleness": 1}, "cluster.staleness is 1"),
    ],
)
def test_what_is_not_possible_is_refused(
    shards: list[str], num_trainers: int, cluster: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=f"placement.policy: given lookahead, expected none, because {reason}"):
        choose_placement(job_of("lookahead", shards, **cluster), num_trainers=num_trainers)


def budgeted(kind: str = "importance", **values: Any) -> EmbeddingsConfig:
    values = {"budget": "20KiB", "retention": {"kind": kind}} | values
    return EmbeddingsConfig.from_dict(values, where="test")


@pytest.mark.parametrize("num_trainers", [1, 2])
def test_rows_under_a_budget_stay_where_their_table_is(num_trainers: int) -> None:
    reason = "embeddings.budget moves rows of ids that are in no announced batch"
    job = job_of("auto", HERE).model_copy(update={"embeddings": budgeted()})
    choice = choose_placement(job, num_trainers=num_trainers)
    assert (choice.keeps_rows, choice.reason) == (False, f"none: {reason}")
    job = job_of("lookahead", HERE).model_copy(update={"embeddings": budgeted()})
    with pytest.raises(ConfigError, match=f"given lookahead, expected none, because {reason}"):
        choose_placement(job, num_trainers=num_trainers)


@pytest.mark.parametrize("is_remote", [False, True])
def test_rows_under_a_budget_are_read_when_the_step_before_is_done(is_remote: bool) -> None:
    bags = EmbeddingBags(budgeted(), ["item"], 4, seed=0)
    if is_remote:
        bags.use_store(object())  # type: ignore[arg-type]
    assert choose_policy(SchedulerConfig(), bags) is None
    assert choose_policy(SchedulerConfig(policy="serial"), bags) is not None
    with pytest.raises(ConfigError, match=r"given recs with embeddings.budget, expected auto or serial"):
        choose_policy(SchedulerConfig(policy="recs"), bags)


def test_shards_need_a_policy_that_divides_ids_and_a_partition_for_each() -> None:
    model = nn.ModuleDict({"embeddings": EmbeddingBags(budgeted("adaembed"), ["item"], 4, seed=0)})
    with pytest.raises(ConfigError, match=r"retention.kind: given adaembed with partitions, .* expected importance or"):
        ShardedTables(job_of("auto", HERE), model, SingleProcess())
    few = budgeted(partitions=1)
    model = nn.ModuleDict({"embeddings": EmbeddingBags(few, ["item"], 4, seed=0)})
    tables = ShardedTables(job_of("auto", HERE).model_copy(update={"embeddings": few}), model, SingleProcess())
    with pytest.raises(ConfigError, match=r"embeddings.partitions: given 1 for 2 shards, expected at least as many"):
        tables.open(step=0, checkpoint=None)


def test_rows_without_a_window_are_kept_by_one_trainer() -> None:
    job = job_of({"policy": "lookahead", "window": 0}, HERE)
    assert choose_placement(job, num_trainers=1).keeps_rows
    with pytest.raises(ConfigError, match=r"because placement\.window is 0, and there are several trainers"):
        choose_placement(job, num_trainers=2)


def test_batches_are_split_only_without_a_window() -> None:
    job_of({"window": 0, "split": "popular_first"}, HERE)
    with pytest.raises(ValueError, match="split popular_first needs window 0, given window 32"):
        job_of({"split": "popular_first"}, HERE)


def test_every_split_of_the_job_file_is_there() -> None:
    assert set(get_args(PlacementConfig.model_fields["split"].annotation)) == set(SPLITS)


@pytest.mark.parametrize(
    ("num_trainers", "slow_s", "fast_s", "keeping"),
    [
        (1, 0.64e-6, 0.38e-6, "keeping it in the trainer"),
        (2, 2.0e-6, 0.64e-6, "exchanging it between 2 trainers"),
        (3, 5.4e-6, 2.0e-6, "exchanging it between 3 trainers"),
    ],
)
def test_auto_keeps_rows_if_reading_them_takes_longer_than_keeping_them_costs(
    num_trainers: int, slow_s: float, fast_s: float, keeping: str
) -> None:
    choice = choose_placement(job_of("auto", HERE), num_trainers=num_trainers)
    slow, fast = (settle_placement(choice, row_s, num_trainers=num_trainers) for row_s in (slow_s, fast_s))
    assert slow.keeps_rows
    assert slow.reason == f"{choice.reason}; reading a row from the shards takes {1e6 * slow_s:.2f} us"
    assert not fast.keeps_rows
    reads = f"none: reading a row from the shards takes {1e6 * fast_s:.2f} us"
    assert fast.reason == f"{reads}, so that {keeping} would cost more than it saves"


def test_samples_can_only_be_placed_where_rows_are_kept() -> None:
    with pytest.raises(ValidationError, match=r"samples by_cost needs policy lookahead or auto, given policy none"):
        job_of({"policy": "none", "samples": "by_cost"}, HERE)
