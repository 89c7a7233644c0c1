"""The pipeline of a job finds the unique keys of its batches; the step finds none, and trains to the same bits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
import torch

from headrace.embeddings import EmbeddingBags, EmbeddingsConfig, KeyedPlan, embedding_bags, key_layouts
from headrace.errors import PipelineError
from headrace.features import FeaturePlan
from headrace.logs import Schema
from headrace.pipeline import read_arrow
from headrace.testing.sessions import SESSION_SCHEMA, SessionSource
from headrace.training.components import build_components
from headrace.training.feed import PlannedSources, build_pipeline
from headrace.training.job import JobConfig
from headrace.training.step import TrainingStep

MODELS: dict[str, dict[str, Any]] = {
    "DLRM": {"kind": "dlrm", "embedding_dim": 8, "bottom": [8], "top": [16]},
    "encoder": {
        "kind": "dlrm",
        "embedding_dim": 8,
        "bottom": [8],
        "top": [16],
        "encoder": {"features": ["history"], "num_heads": 2},
    },
    "DeepFM": {"kind": "deepfm", "embedding_dim": 8, "deep": [16]},
    "Wide & Deep": {"kind": "wide_deep", "embedding_dim": 8, "deep": [16]},
    "DIN": {"kind": "din", "embedding_dim": 8, "histories": {"history": "item"}, "deep": [16]},
}


def job_of(model: dict[str, Any]) -> JobConfig:
    return JobConfig.from_dict(
        {
            "run": "unused",
            "data": {"path": "unused", "schema": SESSION_SCHEMA.model_dump(mode="json", by_alias=True)},
            "features": {"dedup": "auto"},
            "embeddings": {"default": {"kind": "collisionless"}, "tables": {"item": {"feature_names": ["history"]}}},
            "model": model,
            "training": {"batch_size": 256, "seed": 1, "threads": 1},
        },
        where="test",
    )


@pytest.mark.parametrize("name", list(MODELS))
def test_a_step_uses_the_keys_of_its_batch_and_finds_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    job, source = job_of(MODELS[name]), SessionSource(nested=True, num_splits=2, sessions_per_batch=60)
    tables = []
    for by_workers in (True, False):
        components = build_components(job)
        sources = PlannedSources(job, components.plan, [lambda: source], batch_size=256)
        layouts = key_layouts(components.model)
        assert len(layouts) == 1, "modules over the same features share their keys"
        with build_pipeline(job, sources, layouts=layouts).open(executor="inline") as opened:
            batches = list(opened)
        assert all(set(batch.unique_keys) == set(layouts) for batch in batches)
        step = TrainingStep(components.model, components.optimizer)
        with monkeypatch.context() as patch:
            if by_workers:
                patch.setattr("headrace.embeddings.keys.unique_keys", _fail)
                patch.setattr("headrace.embeddings.ops.accumulation.unique_keys", _fail)
            for batch in batches:
                step(batch if by_workers else replace(batch, unique_keys={}))
        tables.append([bags.table_group.weights for bags in embedding_bags(components.model).values()])  # type: ignore[union-attr]
    assert all(torch.equal(one, other) for one, other in zip(*tables, strict=True))


def test_an_id_that_is_no_row_of_its_table_is_a_bad_row_of_the_pipeline() -> None:
    schema = Schema.from_dict({"labels": ["click"], "ids": ["user"]}, where="schema")
    config = EmbeddingsConfig.from_dict({"default": {"kind": "direct", "num_embeddings": 5}}, where="embeddings")
    bags, plan = EmbeddingBags(config, ["user"], 4, seed=1), FeaturePlan.default(schema)
    pipe = read_arrow(pa.table({"click": [0.0, 1.0, 0.0, 1.0], "user": [1, 2, 5, 3]})).batch(4)
    keyed = KeyedPlan(plan, key_layouts(bags))
    with pipe.transform(keyed, bad_rows="drop").open(executor="inline") as batches:
        (batch,) = batches
        assert batches.take_row_stats().num_dropped == 1
    assert batch.row_ids.tolist() == [0, 1, 3]
    (part,) = batch.keys_of(bags.key_layout)
    assert part.keys.ids.tolist() == [1, 2, 3]
    said = r"feature user: id 5 in row 2 of the batch, expected 0 <= id < 5 .*; at row id 2"
    with pipe.transform(keyed).open(executor="inline") as batches, pytest.raises(PipelineError, match=said):
        next(batches)


def _fail(*_: Any) -> Any:
    raise AssertionError("keys were found in the step")
