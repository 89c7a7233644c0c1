"""A small batch with two dense and three sparse features, and one thread: it is too small for more."""

import pytest
import torch

from headrace.embeddings import EmbeddingsConfig
from headrace.tensors import Batch, KeyedJaggedTensor

NUM_ROWS = 12


@pytest.fixture(autouse=True)
def every_test_has_one_thread(one_thread: None) -> None:
    """See `one_thread`."""


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    lists = {
        "user": [[row % 4] for row in range(NUM_ROWS)],
        "item": [[row % 5] for row in range(NUM_ROWS)],
        "history": [list(range(row % 3)) for row in range(NUM_ROWS)],
    }
    return Batch(
        dense=torch.randn(NUM_ROWS, 2, generator=generator),
        sparse=(KeyedJaggedTensor.from_lists(lists),),
        labels=torch.randint(0, 2, (NUM_ROWS, 2), generator=generator).float(),
        row_ids=torch.arange(NUM_ROWS),
    )


@pytest.fixture
def embeddings() -> EmbeddingsConfig:
    return EmbeddingsConfig.from_dict(
        {
            "default": {"kind": "hashed", "num_embeddings": 20, "init_scale": 0.5},
            "tables": {"item": {"feature_names": ["history"], "pooling": {"history": "mean"}}},
        },
        where="test",
    )
