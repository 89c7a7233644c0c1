"""A new run says what it uses where its job file leaves a setting open, and nothing about what the file says."""

from __future__ import annotations

from typing import Any

from headrace.training.choices import describe_choices
from headrace.training.components import build_components
from headrace.training.job import JobConfig
from headrace.training.precision import PrecisionChoice

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
