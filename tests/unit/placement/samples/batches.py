"""Small batches for tests, and their keys."""

from __future__ import annotations

import numpy as np
import torch

from headrace.embeddings import EmbeddingBags, EmbeddingsConfig, KeyLayout
from headrace.placement.samples.planning import ToldBatch
from headrace.placement.samples.sample_keys import SampleKeys
from headrace.tensors import Batch, Group, InverseKeyedJaggedTensor, KeyedJaggedTensor

TABLES = {"items": ["item", "history"], "users": ["user"]}


def layout(tables: dict[str, list[str]] | None = None) -> KeyLayout:
    """The layout of collisionless tables, given their features."""
    tables = tables or TABLES
    config = {
        "default": {"kind": "collisionless"},
        "tables": {name: {"feature_names": features} for name, features in tables.items()},
    }
    names = [feature for features in tables.values() for feature in features]
    return EmbeddingBags(EmbeddingsConfig.from_dict(config, where="test"), names, 4, seed=0).key_layout


def batch(*groups: Group, first_row: int = 0, has_weights: bool = False) -> Batch:
    size = groups[0].stride
    rng = np.random.default_rng(first_row)
    return Batch(
        torch.from_numpy(rng.random((size, 2), dtype=np.float32)),
        groups,
        torch.from_numpy(rng.integers(0, 2, (size, 1)).astype(np.float32)),
        torch.arange(first_row, first_row + size),
        torch.from_numpy(rng.random(size, dtype=np.float32)) if has_weights else None,
    )


def random_batch(seed: int, size: int, num_ids: int = 30, *, shared: bool = False, first_row: int = 0) -> Batch:
    """Item, history of up to 3, and user; with `shared`, user and history repeat, as in a session."""
    rng = np.random.default_rng(seed)

    def ids(count: int) -> list[int]:
        return (num_ids * rng.random(count) ** 2).astype(np.int64).tolist()

    item = [ids(1) for _ in range(size)]
    unique = size if not shared else max(1, size // 3)
    rest = {"history": [ids(int(rng.integers(4))) for _ in range(unique)], "user": [ids(1) for _ in range(unique)]}
    if not shared:
        return batch(KeyedJaggedTensor.from_lists({"item": item, **rest}), first_row=first_row)
    inverse = torch.from_numpy(np.sort(rng.integers(0, unique, size)).astype(np.int32))
    repeated = InverseKeyedJaggedTensor.of_unique(KeyedJaggedTensor.from_lists(rest), inverse)
    return batch(KeyedJaggedTensor.from_lists({"item": item}), repeated, first_row=first_row, has_weights=True)


def told(batch: Batch, of: KeyLayout, *, sample_bytes: int = 0, form: int = 0) -> ToldBatch:
    (found,) = batch.keys_of(of)
    return ToldBatch((SampleKeys.of(found),), sample_bytes, form)


def lists(batch: Batch) -> list[dict[str, list[int]]]:
    """The ids of each sample, by feature."""
    columns: dict[str, list[list[int]]] = {}
    for group in batch.sparse:
        columns |= group.to_lists()
    return [{name: column[sample] for name, column in sorted(columns.items())} for sample in range(len(batch))]
