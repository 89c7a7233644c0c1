"""Small models and batches for tests of the training step."""

from __future__ import annotations

from typing import Any

import torch

from headrace.embeddings import EmbeddingsConfig
from headrace.models import DLRM, DLRMConfig
from headrace.tensors import Batch, KeyedJaggedTensor


def make_model(
    optimizer: dict[str, Any], *, num_labels: int = 1, bottom: tuple[int, ...] = (8,), top: tuple[int, ...] = (16,)
) -> DLRM:
    """A model of two dense and two sparse features, whose tables have this optimizer."""
    table = {"kind": "hashed", "num_embeddings": 50, "optimizer": optimizer}
    embeddings = EmbeddingsConfig.from_dict({"default": table}, where="test")
    config = DLRMConfig(embedding_dim=4, bottom=bottom, top=top)
    return DLRM(config, num_dense=2, sparse_keys=["user", "item"], num_labels=num_labels, embeddings=embeddings, seed=0)


def make_batch(seed: int, num_rows: int = 24, *, num_labels: int = 1, has_weights: bool = False) -> Batch:
    """Random rows for the model."""
    generator = torch.Generator().manual_seed(seed)
    ids = {name: [[(row * 7 + seed) % size] for row in range(num_rows)] for name, size in (("user", 9), ("item", 5))}
    return Batch(
        dense=torch.randn(num_rows, 2, generator=generator),
        sparse=(KeyedJaggedTensor.from_lists(ids),),
        labels=torch.randint(0, 2, (num_rows, num_labels), generator=generator).float(),
        row_ids=torch.arange(num_rows),
        weights=torch.rand(num_rows, generator=generator) if has_weights else None,
    )


def batch_of(labels: list[list[float]], weights: list[float] | None = None) -> Batch:
    """Rows with these labels, and without features."""
    return Batch(
        dense=torch.zeros(len(labels), 0),
        sparse=(),
        labels=torch.tensor(labels),
        row_ids=torch.arange(len(labels)),
        weights=None if weights is None else torch.tensor(weights),
    )
