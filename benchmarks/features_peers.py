"""The feature workloads in numpy, torch, polars, pyarrow.compute and TensorFlow, each in the fastest form found.

Every peer is a function of (record batch, work) that returns a function without arguments, which is timed. Everything
that can be prepared once (borders, constants, output buffers if supported) is prepared before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["PEERS", "BucketSpec", "HashSpec", "Work"]

Result = tuple[Any, Any, Any, Any]
FACTOR = 0x9DDFEA08EB382D69


@dataclass(frozen=True)
class HashSpec:
    """A column of ids to hash."""

    column: str
    range: int
    salt: int


@dataclass(frozen=True)
class BucketSpec:
    """A feature generated from a dense column: its bucket, hashed."""

    name: str
    column: str
    borders: np.ndarray
    range: int
    salt: int


@dataclass(frozen=True)
class Work:
    """The features to compute from a batch.

    Attributes:
        dense: Names of dense columns.
        hashes: Columns of ids, and how to hash them.
        buckets: Features generated from dense columns.
        lists: Whether ids come in lists; otherwise there is one per row.
    """

    dense: tuple[str, ...]
    hashes: tuple[HashSpec, ...]
    buckets: tuple[BucketSpec, ...]
    lists: bool


def with_numpy(batch: pa.RecordBatch, work: Work) -> Callable[[], Result]:
    """Use in-place ufuncs, one column at a time, so that a column stays in the L2 cache."""

    def run() -> Result:
        columns = [_filled(batch, name) for name in work.dense]
        dense = np.stack(columns, axis=1)
        np.maximum(dense, 0, out=dense)
        np.log1p(dense, out=dense)
        filled = dict(zip(work.dense, columns, strict=True))
        values, lengths = [], []
        for spec in work.hashes:
            ids, sizes = _ids(batch.column(spec.column))
            values.append(_numpy_hash(ids, spec.range, spec.salt))
            lengths.append(sizes)
        ones = np.ones(batch.num_rows, np.int32)
        for bucket in work.buckets:
            ids = np.searchsorted(bucket.borders, filled[bucket.column])
            values.append(_numpy_hash(ids, bucket.range, bucket.salt))
            lengths.append(ones)
        all_lengths = np.concatenate(lengths)
        return dense, np.concatenate(values), all_lengths, _numpy_offsets(all_lengths)

    return run


def with_torch(batch: pa.RecordBatch, work: Work) -> Callable[[], Result]:
    """Use in-place tensor operations, one column at a time; `remainder` rounds down, like SigridHash."""
    import torch

    borders = [torch.from_numpy(bucket.borders.astype(np.float32)) for bucket in work.buckets]

    def run() -> Result:
        # torch.stack of the columns takes six times as long as copying them into rows and transposing once.
        wide = torch.empty(len(work.dense), batch.num_rows)
        filled = {}
        for at, name in enumerate(work.dense):
            wide[at] = filled[name] = torch.from_numpy(_filled(batch, name))
        dense = wide.clamp_(min=0).log1p_().t().contiguous()
        values, lengths = [], []
        for spec in work.hashes:
            ids, sizes = _ids(batch.column(spec.column))
            values.append(_torch_hash(torch.from_numpy(ids), spec.range, spec.salt))
            lengths.append(torch.from_numpy(sizes))
        ones = torch.ones(batch.num_rows, dtype=torch.int32)
        for bucket, edges in zip(work.buckets, borders, strict=True):
            values.append(_torch_hash(torch.bucketize(filled[bucket.column], edges), bucket.range, bucket.salt))
            lengths.append(ones)
        all_lengths = torch.cat(lengths)
        offsets = torch.zeros(len(all_lengths) + 1, dtype=torch.int64)
        torch.cumsum(all_lengths, 0, out=offsets[1:])
        return dense, torch.cat(values), all_lengths, offsets

    return run


def with_polars(batch: pa.RecordBatch, work: Work) -> Callable[[], Result]:
    """Use lazy queries of expressions; ids are hashed with polars' own hash."""
    import polars as pl

    frame = pl.from_arrow(batch)
    assert isinstance(frame, pl.DataFrame)
    dense = [pl.col(name).fill_null(0).clip(lower_bound=0).log1p() for name in work.dense]
    hashes = []
    for spec in work.hashes:
        ids = pl.col(spec.column).explode(empty_as_null=False) if work.lists else pl.col(spec.column)
        hashes.append(frame.lazy().select((ids.hash(spec.salt) % spec.range).cast(pl.Int64)))
    edges = [pl.Series(bucket.borders.astype(np.float32)) for bucket in work.buckets]
    lengths = [pl.col(spec.column).list.len().cast(pl.Int32) for spec in work.hashes]

    def run() -> Result:
        matrix = frame.lazy().select(dense).collect().to_numpy(order="c")
        values = [query.collect().to_series().to_numpy() for query in hashes]
        for bucket, edge in zip(work.buckets, edges, strict=True):
            buckets = edge.search_sorted(frame[bucket.column].fill_null(0), side="left")
            values.append((buckets.hash(bucket.salt) % bucket.range).cast(pl.Int64).to_numpy())
        ones = np.ones(batch.num_rows, np.int32)
        sizes = [ones] * len(work.hashes)
        if work.lists:
            sizes = [column.to_numpy() for column in frame.lazy().select(lengths).collect()]
        all_lengths = np.concatenate([*sizes, *[ones] * len(work.buckets)])
        return matrix, np.concatenate(values), all_lengths, _numpy_offsets(all_lengths)

    return run


def with_pyarrow(batch: pa.RecordBatch, work: Work) -> Callable[[], Result]:
    """Use compute functions; Bucketize uses numpy, because pyarrow does not have it."""

    def run() -> Result:
        filled = {name: pc.fill_null(batch.column(name), 0) for name in work.dense}
        columns = [pc.log1p(pc.max_element_wise(filled[name], pa.scalar(0, pa.float32()))) for name in work.dense]
        dense = np.stack([column.to_numpy() for column in columns], axis=1)
        values, lengths = [], []
        for spec in work.hashes:
            ids, sizes = _ids(batch.column(spec.column))
            values.append(_pyarrow_hash(pa.array(ids), spec.range, spec.salt))
            lengths.append(sizes)
        ones = np.ones(batch.num_rows, np.int32)
        for bucket in work.buckets:
            ids = np.searchsorted(bucket.borders, filled[bucket.column].to_numpy())
            values.append(_pyarrow_hash(pa.array(ids), bucket.range, bucket.salt))
            lengths.append(ones)
        all_lengths = np.concatenate(lengths)
        return dense, np.concatenate(values), all_lengths, _numpy_offsets(all_lengths)

    return run


def with_tensorflow(batch: pa.RecordBatch, work: Work) -> Callable[[], Result]:
    """Use one `tf.function` over all columns."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    borders = [tf.constant(bucket.borders.astype(np.float32)) for bucket in work.buckets]
    positions = [work.dense.index(bucket.column) for bucket in work.buckets]

    @tf.function
    def transform(columns: list[Any], ids: list[Any]) -> tuple[Any, Any]:
        dense = tf.math.log1p(tf.maximum(tf.stack(columns, axis=1), 0))
        values = [_tensorflow_hash(tf, i, s.range, s.salt) for i, s in zip(ids, work.hashes, strict=True)]
        for bucket, edges, at in zip(work.buckets, borders, positions, strict=True):
            buckets = tf.searchsorted(edges, columns[at], side="left", out_type=tf.int64)
            values.append(_tensorflow_hash(tf, buckets, bucket.range, bucket.salt))
        return dense, tf.concat(values, axis=0)

    def run() -> Result:
        columns = [tf.convert_to_tensor(_filled(batch, name)) for name in work.dense]
        pairs = [_ids(batch.column(spec.column)) for spec in work.hashes]
        dense, values = transform(columns, [tf.convert_to_tensor(ids) for ids, _ in pairs])
        ones = np.ones(batch.num_rows, np.int32)
        all_lengths = np.concatenate([*(sizes for _, sizes in pairs), *[ones] * len(work.buckets)])
        return dense.numpy(), values.numpy(), all_lengths, _numpy_offsets(all_lengths)

    return run


PEERS: dict[str, tuple[str, Callable[[pa.RecordBatch, Work], Callable[[], Result]]]] = {
    "numpy": ("numpy", with_numpy),
    "torch": ("torch", with_torch),
    "pyarrow.compute": ("pyarrow", with_pyarrow),
    "polars": ("polars", with_polars),
    "tensorflow": ("tensorflow", with_tensorflow),
}


def _filled(batch: pa.RecordBatch, name: str) -> np.ndarray:
    """Return a column with 0 for null; this is faster in Arrow than passing nulls to numpy or torch."""
    array: np.ndarray = pc.fill_null(batch.column(name), 0).to_numpy()
    return array


def _ids(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of a column without nulls (not copied), and the number of ids per row."""
    if pa.types.is_list(column.type):
        offsets = np.frombuffer(column.buffers()[1], np.int32, len(column) + 1, column.offset * 4)
        return column.flatten().to_numpy(), np.diff(offsets)
    return column.to_numpy(), np.ones(len(column), np.int32)


def _numpy_offsets(lengths: np.ndarray) -> np.ndarray:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _numpy_hash(ids: np.ndarray, range_: int, salt: int) -> np.ndarray:
    """Apply SigridHash in place, with two buffers."""
    key = ids.astype(np.uint64)
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
    result: np.ndarray = key.view(np.int64)
    result %= range_
    return result


def _torch_hash(ids: Any, range_: int, salt: int) -> Any:
    """Apply SigridHash to int64; a logical shift is an arithmetic shift and a mask."""
    key = ~ids + (ids << 21)
    key ^= (key >> 24) & ((1 << 40) - 1)
    key = key + (key << 3) + (key << 8)
    key ^= (key >> 14) & ((1 << 50) - 1)
    key = key + (key << 2) + (key << 4)
    key ^= (key >> 28) & ((1 << 36) - 1)
    key += key << 31
    factor = FACTOR - (1 << 64)
    for _ in range(2):
        key ^= salt
        key *= factor
        key ^= (key >> 47) & ((1 << 17) - 1)
    key *= factor
    return key.remainder_(range_)


def _pyarrow_hash(ids: pa.Array, range_: int, salt: int) -> np.ndarray:
    """Apply SigridHash with wrapping arithmetic; modulo is a division, a product and a difference."""
    key = ids.view(pa.uint64())

    def word(number: int) -> pa.Scalar:
        return pa.scalar(number, pa.uint64())

    key = pc.add(pc.bit_wise_not(key), pc.shift_left(key, word(21)))
    for right, lefts in ((24, (3, 8)), (14, (2, 4)), (28, (31,))):
        key = pc.bit_wise_xor(key, pc.shift_right(key, word(right)))
        start = key
        for left in lefts:
            key = pc.add(key, pc.shift_left(start, word(left)))
    for _ in range(2):
        key = pc.multiply(pc.bit_wise_xor(key, word(salt)), word(FACTOR))
        key = pc.bit_wise_xor(key, pc.shift_right(key, word(47)))
    hashed = pc.multiply(key, word(FACTOR)).view(pa.int64())
    rest = pc.subtract(hashed, pc.multiply(pc.divide(hashed, range_), range_))
    result: np.ndarray = pc.if_else(pc.less(rest, 0), pc.add(rest, range_), rest).to_numpy()
    return result


def _tensorflow_hash(tf: Any, ids: Any, range_: int, salt: int) -> Any:
    """Apply SigridHash to uint64."""
    bits = tf.bitwise

    def word(number: int) -> Any:
        return tf.constant(number, tf.uint64)

    key = tf.bitcast(ids, tf.uint64)
    key = bits.invert(key) + bits.left_shift(key, word(21))
    for right, lefts in ((24, (3, 8)), (14, (2, 4)), (28, (31,))):
        key = bits.bitwise_xor(key, bits.right_shift(key, word(right)))
        key = tf.add_n([key, *(bits.left_shift(key, word(left)) for left in lefts)])
    for _ in range(2):
        key = bits.bitwise_xor(key, word(salt)) * word(FACTOR)
        key = bits.bitwise_xor(key, bits.right_shift(key, word(47)))
    return tf.math.floormod(tf.bitcast(key * word(FACTOR), tf.int64), range_)
