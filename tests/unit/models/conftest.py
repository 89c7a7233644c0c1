"""A small batch with two dense and three sparse features, and one thread: it is too small for more."""

from collections.abc import Iterator

import numba
import pytest
import torch

from headrace.embeddings import EmbeddingsConfig
from headrace.tensors import Batch, KeyedJaggedTensor

NUM_ROWS = 12


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One Numba and one torch thread; what was before comes back."""
    before = numba.get_num_threads(), torch.get_num_threads()
    numba.set_num_threads(1)
    torch.set_num_threads(1)
    yield
    numba.set_num_threads(before[0])
    torch.set_num_threads(before[1])


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
