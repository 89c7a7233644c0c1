"""The work that every loader does, in numpy, torch and TensorFlow: from rows in Criteo's format to batches of 4096.

A finished batch is `(dense, ids, labels)`: float32 [B, 13], int64 [26, B] or [B, 26], float32 [B]. Nulls of dense
columns become 0, and dense values are transformed with log1p. Ids are mapped to the range of their table by one of two
operations:

- "modulo" takes the remainder. Ids of Criteo's logs are already hashes, so training scripts for them do this.
- "hash" is SigridHash, which Meta's feature pipelines apply to ids that are not hashes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["BATCH_SIZE", "COLUMNS", "DENSE", "IDS", "LABEL", "RANGES", "SCHEMA", "Batch", "IdOp", "config", "digest"]

BATCH_SIZE = 4096
LABEL = "label"
DENSE = tuple(f"dense_{number}" for number in range(13))
IDS = tuple(f"id_{number}" for number in range(26))
COLUMNS = (LABEL, *DENSE, *IDS)
RANGES = tuple([1_000_003, 100_003, 10_007, 1_009][number % 4] for number in range(26))
SCHEMA = {"labels": [LABEL], "dense": list(DENSE), "ids": list(IDS)}

IdOp = Literal["modulo", "hash"]
FACTOR = 0x9DDFEA08EB382D69


class Batch(NamedTuple):
    """A finished batch of an arm; arrays of numpy, torch or TensorFlow."""

    dense: Any
    ids: Any
    labels: Any


def config(op: IdOp) -> dict[str, Any]:
    """Return the same work as the section `features` of a job file."""
    if op == "modulo":
        sparse = {name: [{"positive_modulus": RANGES[at]}] for at, name in enumerate(IDS)}
    else:
        sparse = {name: [{"hash": {"range": RANGES[at], "salt": at}}] for at, name in enumerate(IDS)}
    return {"dense": {name: [{"fill": 0}, "log1p"] for name in DENSE}, "sparse": sparse}


def numpy_batch(rows: pa.RecordBatch, op: IdOp) -> Batch:
    """Do all of the work in numpy, in place where possible."""
    dense, ids, labels = raw_arrays(rows)
    np.log1p(dense, out=dense)
    return Batch(dense.T, numpy_ids(ids, op), labels)


def raw_arrays(rows: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return dense [13, B] with nulls filled, ids [26, B] and labels [B]; dense and ids are copies."""
    dense = np.empty((len(DENSE), rows.num_rows), np.float32)
    for at, name in enumerate(DENSE):
        dense[at] = pc.fill_null(rows.column(name), 0).to_numpy()
    ids = np.empty((len(IDS), rows.num_rows), np.int64)
    for at, name in enumerate(IDS):
        ids[at] = rows.column(name).to_numpy()
    return dense, ids, rows.column(LABEL).to_numpy()


def numpy_ids(ids: np.ndarray, op: IdOp) -> np.ndarray:
    """Map ids [26, B] to their ranges, in place."""
    for at in range(len(IDS)):
        if op == "hash":
            _numpy_mix(ids[at].view(np.uint64), at)
        np.remainder(ids[at], RANGES[at], out=ids[at])
    return ids


def torch_batch(rows: pa.RecordBatch, op: IdOp) -> Batch:
    """Do all of the work in torch, in place where possible."""
    import torch

    dense, ids, labels = raw_arrays(rows)
    return Batch(
        torch.from_numpy(dense).log1p_().t(), torch_ids(torch.from_numpy(ids), op), torch.from_numpy(labels.copy())
    )


def torch_ids(ids: Any, op: IdOp) -> Any:
    """Map ids [26, B], a torch tensor, to their ranges."""
    import torch

    if op == "hash":
        key = ~ids + (ids << 21)
        key ^= (key >> 24) & ((1 << 40) - 1)  # a logical shift is an arithmetic shift and a mask
        key = key + (key << 3) + (key << 8)
        key ^= (key >> 14) & ((1 << 50) - 1)
        key = key + (key << 2) + (key << 4)
        key ^= (key >> 28) & ((1 << 36) - 1)
        key += key << 31
        for _ in range(2):
            key ^= torch.arange(len(IDS)).unsqueeze(1)
            key *= FACTOR - (1 << 64)
            key ^= (key >> 47) & ((1 << 17) - 1)
        ids = key.mul_(FACTOR - (1 << 64))
    return ids.remainder_(torch.tensor(RANGES).unsqueeze(1))


def tensorflow_ids(ids: Any, op: IdOp) -> Any:
    """Map ids [26, B], a TensorFlow tensor, to their ranges."""
    import tensorflow as tf

    if op == "hash":
        bits = tf.bitwise

        def word(number: int) -> Any:
            return tf.constant(number, tf.uint64)

        key = tf.bitcast(ids, tf.uint64)
        key = bits.invert(key) + bits.left_shift(key, word(21))
        for right, lefts in ((24, (3, 8)), (14, (2, 4)), (28, (31,))):
            key = bits.bitwise_xor(key, bits.right_shift(key, word(right)))
            key = tf.add_n([key, *(bits.left_shift(key, word(left)) for left in lefts)])
        salts = tf.constant(np.arange(len(IDS), dtype=np.uint64)[:, None])
        for _ in range(2):
            key = bits.bitwise_xor(key, salts) * word(FACTOR)
            key = bits.bitwise_xor(key, bits.right_shift(key, word(47)))
        ids = tf.bitcast(key * word(FACTOR), tf.int64)
    return tf.math.floormod(ids, tf.constant(np.array(RANGES)[:, None]))


def slices(rows: pa.RecordBatch, size: int = BATCH_SIZE) -> Iterator[pa.RecordBatch]:
    """Yield slices of `size` consecutive rows, without copying."""
    for start in range(0, rows.num_rows, size):
        yield rows.slice(start, size)


def digest(batch: Batch) -> tuple[tuple[int, int, int], float]:
    """Return a fingerprint of a batch: exact sums of ids and labels, and a sum of dense values, to compare nearly.

    It depends on which value belongs to which row and feature, but not on the layout of the arrays.
    """
    dense, ids, labels = (np.asarray(part) for part in batch)
    if ids.shape[0] != len(IDS):
        ids = ids.T
    row = np.arange(1, ids.shape[1] + 1)
    by_feature = int((ids.sum(axis=1) * np.arange(1, len(IDS) + 1)).sum())
    by_row = int((ids.sum(axis=0) * row).sum())
    columns = (dense.astype(np.float64) * (row[:, None] % 7 + 1)).sum(axis=0)
    return (by_feature, by_row, int((labels * row).sum())), float((columns * np.arange(1, len(DENSE) + 1)).sum())


def _numpy_mix(key: np.ndarray, salt: int) -> None:
    """Apply the mixing of SigridHash in place, with two buffers."""
    other = key << np.uint64(21)
    np.invert(key, out=key)
    key += other
    for right, lefts in ((24, (3, 8)), (14, (2, 4)), (28, (31,))):
        np.right_shift(key, np.uint64(right), out=other)
        key ^= other
        other = key.copy()
        for left in lefts:
            key += other << np.uint64(left)
    for _ in range(2):
        key ^= np.uint64(salt)
        key *= np.uint64(FACTOR)
        np.right_shift(key, np.uint64(47), out=other)
        key ^= other
    key *= np.uint64(FACTOR)
