"""A job's model on a device: what moves, and what a user reads who has none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from headrace.embeddings import embedding_bags
from headrace.errors import ConfigError
from headrace.tensors import Batch, KeyedJaggedTensor
from headrace.testing.sessions import SESSION_SCHEMA
from headrace.training.components import JobComponents, build_components, place_model, send_batches
from headrace.training.job import JobConfig
from headrace.training.step import StepResult, TrainingStep


def assembled(kind: str, device: str = "cpu") -> JobComponents:
    return build_components(
        JobConfig.from_dict(
            {
                "run": "unused",
                "data": {"path": "unused", "schema": SESSION_SCHEMA.model_dump(mode="json", by_alias=True)},
                "embeddings": {"default": {"num_embeddings": 50}},
                "model": {"kind": kind, "embedding_dim": 4},
                "training": {"precision": "fp32", "threads": 1, "device": device},
            },
            where="test",
        )
    )


def batch(components: JobComponents, seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    lists = {name: [rng.integers(0, 30, 2).tolist() for _ in range(8)] for name in components.plan.sparse_keys}
    dense = rng.normal(size=(8, len(components.plan.dense_names))).astype(np.float32)
    labels = rng.integers(0, 2, (8, len(components.label_names))).astype(np.float32)
    kjt = KeyedJaggedTensor.from_lists(lists)
    return Batch(torch.from_numpy(dense), (kjt,), torch.from_numpy(labels), torch.arange(8), torch.ones(8))


def train(components: JobComponents) -> list[StepResult]:
    step = TrainingStep(components.model, components.optimizer, precision="fp32")
    return [step(batch(components, seed)) for seed in range(4)]


@pytest.mark.parametrize("kind", ["dlrm", "dcnv2", "deepfm", "wide_deep"])
def test_a_model_whose_tables_are_on_a_device_trains_as_on_the_host(kind: str) -> None:
    host, there = assembled(kind), assembled(kind)
    for bags in embedding_bags(there.model).values():
        bags.place_on("cpu")
    send_batches(there.model, torch.device("cpu"))
    for one, other in zip(train(host), train(there), strict=True):
        np.testing.assert_allclose(one.logits, other.logits, rtol=1e-4, atol=1e-5)


def test_a_device_that_is_not_there_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"^training\.device: given cuda, but torch .* finds no GPU; expected cpu$"):
        assembled("dlrm", "cuda")


def test_a_model_that_stays_on_the_host_is_left_as_it_is() -> None:
    model = torch.nn.Linear(1, 1)
    assert place_model(model, "cpu") is model
    assert not model._forward_pre_hooks
