"""A row has the same bits in any batch: alone, among others, first or last."""

import pytest
import torch
from torch import nn

from headrace.embeddings import EmbeddingsConfig
from headrace.models import DCNv2Config, DeepFMConfig, DINConfig, DLRMConfig, ModelConfig, WideDeepConfig
from headrace.models.row_bits import TILE, pad_to_tile, rows_for_equal_bits
from headrace.scoring.forward import Forward
from headrace.tensors import Batch, KeyedJaggedTensor

NUM_ROWS = 300


@pytest.fixture(autouse=True)
def every_test_has_one_thread(one_thread: None) -> None:
    """See `one_thread`."""


@pytest.fixture(scope="module")
def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    lists = {
        "item": [[row % 50] for row in range(NUM_ROWS)],
        "history": [[(row + n) % 50 for n in range(1 + row % 3)] for row in range(NUM_ROWS)],
    }
    return Batch(
        dense=torch.randn(NUM_ROWS, 2, generator=generator),
        sparse=(KeyedJaggedTensor.from_lists(lists),),
        labels=torch.zeros(NUM_ROWS, 1),
        row_ids=torch.arange(NUM_ROWS),
    )


@pytest.mark.parametrize(
    "config",
    [
        DLRMConfig(embedding_dim=4, bottom=(8,), top=(8,)),
        DLRMConfig(embedding_dim=16, bottom=(64,), top=(128, 64)),
        DCNv2Config(embedding_dim=4, deep=(8,)),
        DCNv2Config(embedding_dim=4, cross_rank=3, deep=(8,), structure="stacked"),
        DeepFMConfig(embedding_dim=4, deep=(8, 8)),
        WideDeepConfig(embedding_dim=4, deep=(40,)),
        DINConfig(kind="din", embedding_dim=4, histories={"history": "item"}, attention=(8, 4), deep=(8,)),
    ],
    ids=lambda config: config.kind,
)
def test_a_row_has_the_same_bits_in_any_batch(batch: Batch, config: ModelConfig) -> None:
    embeddings = EmbeddingsConfig.from_dict(
        {
            "default": {"kind": "hashed", "num_embeddings": 50, "init_scale": 0.5},
            "tables": {"item": {"feature_names": ["item", "history"]}},
        },
        where="test",
    )
    model = config.build(num_dense=2, sparse_keys=["item", "history"], num_labels=1, embeddings=embeddings, seed=0)
    forward = Forward(model)
    expected = forward(batch)
    for first, last in [(0, 1), (7, 9), (0, 17), (100, 131), (0, 299), (299, 300)]:
        assert torch.equal(forward(batch.slice(first, last)), expected[first:last])
    assert forward(batch.slice(0, 0)).shape == (0, 1)


def test_batches_are_filled_up_to_tiles() -> None:
    assert [pad_to_tile(rows, 16) for rows in (1, 16, 17, 160)] == [16, 16, 32, 160]
    assert [pad_to_tile(rows, 80) for rows in (1, 80, 81)] == [80, 80, 96]


def test_models_without_matrices_need_no_more_than_a_tile() -> None:
    assert rows_for_equal_bits(nn.Identity()) == TILE
