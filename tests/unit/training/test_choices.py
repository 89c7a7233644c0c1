"""A run says what it uses where its job file leaves a setting open, and which settings it does not use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.errors import ConfigError
from headrace.training.choices import describe_choices, describe_unused
from headrace.training.components import build_components
from headrace.training.job import JobConfig
from headrace.training.precision import PrecisionChoice
from headrace.training.trainer import Trainer

SCHEMA = {"labels": ["click"], "dense": ["price"], "ids": ["user", "item"]}


def described(**sections: Any) -> list[str]:
    job = JobConfig.from_dict({"run": "unused", "data": {"path": "unused", "schema": SCHEMA}, **sections}, where="test")
    return describe_choices(job, build_components(job).plan, PrecisionChoice("fp32", "fp32: measured"))


def test_each_open_setting_has_a_line_with_its_value_and_reason() -> None:
    keys = [line.split(":")[0] for line in described()]
    assert keys == [
        "default features", "default embeddings", "default model", "default training.batch_size",
        "default training.precision",
    ]  # fmt: skip
    assert "1 dense and 2 sparse features" in described()[0]


def test_what_the_job_file_says_is_not_repeated() -> None:
    assert not described(
        features={"dense": {"price": ["log1p"]}, "sparse": {"user": []}},
        embeddings={"default": {"num_embeddings": 10}},
        model={"kind": "dlrm"},
        training={"batch_size": 64, "precision": "fp32"},
    )


def test_a_saved_job_has_nothing_open() -> None:
    job = JobConfig.from_dict({"run": "unused", "data": {"path": "unused", "schema": SCHEMA}}, where="test")
    saved = JobConfig.from_dict(job.model_dump(mode="json", by_alias=True), where="test")
    lines = describe_choices(saved, build_components(saved).plan, PrecisionChoice("fp32", "fp32: measured"))
    assert [line.split(":")[0] for line in lines] == [
        "default features", "default training.batch_size", "default training.precision",
    ]  # fmt: skip


def unused(keeps_rows: bool = False, has_scheduler: bool = False, **sections: Any) -> list[str]:
    job = JobConfig.from_dict({"run": "unused", "data": {"path": "unused", "schema": SCHEMA}, **sections}, where="test")
    saved = JobConfig.from_dict(job.model_dump(mode="json", by_alias=True), where="test")  # has all defaults
    lines = describe_unused(job, keeps_rows=keeps_rows, has_scheduler=has_scheduler)
    assert describe_unused(saved, keeps_rows=keeps_rows, has_scheduler=has_scheduler) == lines
    return lines


def test_settings_of_shards_without_shards_are_named_as_unused() -> None:
    assert unused() == unused(placement={"policy": "none"}) == []
    cluster = {"staleness": 2, "rows": "bf16"}
    assert unused(cluster=cluster, placement="lookahead") == [
        "unused cluster.rows, cluster.staleness, placement.policy: there are no shards; headrace launch starts some"
    ]
    there = {"shards": ["localhost:1"], **cluster}
    assert not unused(cluster=there, has_scheduler=True)
    assert not unused(cluster=there, placement={"verify": True}, keeps_rows=True)
    assert unused(cluster=there, placement={"verify": True}) == ["unused placement.verify: rows stay in the shards"]


def test_one_trainer_has_no_other_to_give_samples_to() -> None:
    job = {"run": "unused", "data": {"path": "unused", "schema": SCHEMA}, "cluster": {"shards": ["localhost:1"]}}
    placed = JobConfig.from_dict({**job, "placement": {"samples": "by_cost"}}, where="test")
    lines = [describe_unused(placed, keeps_rows=True, has_scheduler=False, num_trainers=size) for size in (1, 2)]
    assert lines == [
        ["unused placement.samples: there is one trainer; headrace launch --trainers starts more"],
        [],
    ]


def test_settings_of_a_scheduler_without_one_are_named_as_unused() -> None:
    assert not unused(scheduler={"verify": True}, has_scheduler=True)
    assert unused(scheduler={"verify": True, "threads": 2}) == [
        "unused scheduler.threads, scheduler.verify: steps run without a scheduler; scheduler.policy can name one"
    ]


def test_processes_without_functions_are_named_as_unused() -> None:
    assert not unused(pipeline={"executor": "process", "filter": ["my:function"]})
    assert not unused(pipeline={"executor": "inline"})
    assert unused(pipeline={"executor": "process"}) == [
        "unused pipeline.executor: there are no functions in pipeline.map or pipeline.filter"
    ]


def test_traffic_is_only_for_the_plan_that_reads_it() -> None:
    assert unused(cluster={"traffic": {"item": 2}, "plan": "table_wise", "shards": ["localhost:1"]}) == []
    with pytest.raises(ConfigError, match=r"cluster: traffic is only for plan table_wise, given plan row_wise"):
        unused(cluster={"traffic": {"item": 2}})


def test_a_run_names_unused_settings_whenever_it_starts(tmp_path: Path) -> None:
    values = {
        "run": str(tmp_path / "run"),
        "data": {"path": str(tmp_path / "logs"), "schema": {"labels": ["click"], "ids": ["item"]}},
        "pipeline": {"workers": 1, "tuner": "none", "executor": "inline"},
        "model": {"kind": "dcnv2", "embedding_dim": 2, "deep": [2]},
        "training": {"threads": 1},
        "cluster": {"staleness": "async"},
    }
    (tmp_path / "logs").mkdir()
    pq.write_table(pa.table({"click": [0, 1] * 50, "item": list(range(100))}), tmp_path / "logs" / "a.parquet")
    for _ in range(2):
        said: list[str] = []
        Trainer(JobConfig.from_dict(values, where="job").resolve(tmp_path), on_message=said.append).run()
        assert "unused cluster.staleness: there are no shards; headrace launch starts some" in said
