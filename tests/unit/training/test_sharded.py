"""Where rows are kept: what a job asks for, and what is possible."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.errors import ConfigError
from headrace.training import JobConfig
from headrace.training.sharded import choose_placement, settle_placement

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
        ("auto", HERE, 2, "none: there are several trainers"),
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


def test_auto_keeps_rows_if_reading_them_takes_longer_than_keeping_them_costs() -> None:
    choice = choose_placement(job_of("auto", HERE), num_trainers=1)
    slow, fast = settle_placement(choice, 5.35e-6), settle_placement(choice, 0.38e-6)
    assert slow.keeps_rows
    assert slow.reason == f"{choice.reason}; reading a row from the shards takes 5.35 us"
    assert not fast.keeps_rows
    assert fast.reason.startswith("none: reading a row from the shards takes 0.38 us, so that keeping it")
