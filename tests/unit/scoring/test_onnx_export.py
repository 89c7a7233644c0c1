"""The dense part of a model as ONNX gives its outputs, for any number of rows."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")

from headrace.embeddings import EmbeddingsConfig
from headrace.errors import ConfigError
from headrace.models import (
    DCNv2Config,
    DeepFMConfig,
    DINConfig,
    DLRMConfig,
    HistoryEncoderConfig,
    ModelConfig,
    WideDeepConfig,
)
from headrace.scoring.onnx_export import export_onnx
from headrace.tensors import Batch, KeyedJaggedTensor

NUM_ROWS = 40


@pytest.fixture(autouse=True)
def every_test_has_one_thread(one_thread: None) -> None:
    """See `one_thread`."""


@pytest.fixture
def batch() -> Batch:
    lists = {
        "item": [[row % 20] for row in range(NUM_ROWS)],
        "history": [[(row + n) % 20 for n in range(row % 3)] for row in range(NUM_ROWS)],
    }
    return Batch(
        dense=torch.randn(NUM_ROWS, 2, generator=torch.Generator().manual_seed(0)),
        sparse=(KeyedJaggedTensor.from_lists(lists),),
        labels=torch.zeros(NUM_ROWS, 1),
        row_ids=torch.arange(NUM_ROWS),
    )


def build(config: ModelConfig) -> torch.nn.Module:
    embeddings = EmbeddingsConfig.from_dict(
        {
            "default": {"kind": "hashed", "num_embeddings": 20, "init_scale": 0.5},
            "tables": {"item": {"feature_names": ["item", "history"]}},
        },
        where="test",
    )
    return config.build(num_dense=2, sparse_keys=["item", "history"], num_labels=1, embeddings=embeddings, seed=0)


@pytest.mark.parametrize(
    "config",
    [
        DLRMConfig(embedding_dim=4, bottom=(8,), top=(8,)),
        DCNv2Config(embedding_dim=4, deep=(8,), linear=True),
        DeepFMConfig(embedding_dim=4, deep=(8, 8)),
        WideDeepConfig(embedding_dim=4, deep=(8,)),
    ],
    ids=lambda config: config.kind,
)
def test_outputs_are_those_of_the_model(config: ModelConfig, batch: Batch, tmp_path: Path) -> None:
    sample = [batch, batch.slice(0, 7), batch.slice(3, 4)]
    assert export_onnx(build(config), sample, tmp_path / "dense.onnx") < 1e-6


@pytest.mark.parametrize(
    "config",
    [
        DINConfig(kind="din", embedding_dim=4, histories={"history": "item"}, attention=(8, 4), deep=(8,)),
        DLRMConfig(embedding_dim=4, bottom=(8,), top=(8,), encoder=HistoryEncoderConfig(features=("history",))),
    ],
    ids=lambda config: config.kind,
)
def test_a_model_that_attends_over_rows_is_refused(config: ModelConfig, batch: Batch, tmp_path: Path) -> None:
    model = build(config)
    with pytest.raises(ConfigError, match="onnx: this model needs the rows of ids one by one"):
        export_onnx(model, [batch], tmp_path / "dense.onnx")
    assert model(batch).shape == (NUM_ROWS, 1)  # as before
