"""Small tables in shards of this process, and what tests ask of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from headrace.embeddings import Keys, LocalStore, RowWiseAdagradConfig, TableConfig
from headrace.embeddings.shards.table_group import TableGroupSpec
from headrace.embeddings.stores.remote import RemoteStore

Serve = Callable[..., str]

HASHED = TableConfig(name="hashed", num_embeddings=50, embedding_dim=4, optimizer=RowWiseAdagradConfig(lr=0.1))
EXACT = TableConfig(
    name="exact", kind="collisionless", num_embeddings=4, embedding_dim=4, optimizer=RowWiseAdagradConfig(lr=0.05)
)
DIRECT = TableConfig(
    name="direct", kind="direct", num_embeddings=30, embedding_dim=4, optimizer=RowWiseAdagradConfig(lr=0.2)
)
TABLES = (HASHED, EXACT, DIRECT)
SPEC = TableGroupSpec(TABLES, seed=3)
GROUPS = {"t": SPEC}


def batch(rng: np.random.Generator, num_keys: int = 40) -> tuple[Keys, npt.NDArray[np.float32]]:
    pairs = np.unique(np.stack([rng.integers(0, 3, num_keys), rng.integers(0, 30, num_keys)], axis=1), axis=0)
    keys = Keys(pairs[:, 0].astype(np.int32), pairs[:, 1].copy(), rng.integers(1, 4, len(pairs)).astype(np.int32))
    return keys, rng.normal(size=(len(pairs), 4)).astype(np.float32)


def all_keys() -> Keys:
    sizes = (50, 30, 30)
    tables = np.repeat(np.arange(3, dtype=np.int32), sizes)
    ids = np.concatenate([np.arange(size) for size in sizes])
    return Keys(tables, ids, np.ones(len(ids), np.int32))


def read(store: RemoteStore | LocalStore, keys: Keys) -> npt.NDArray[np.float32]:
    return store.read(keys).result()
