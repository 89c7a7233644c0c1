"""The bytes of samples that move to another trainer, and batches joined from samples of several."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headrace.placement.samples.packed_numbers import NumberReader, pack_floats, pack_ids, pack_numbers
from headrace.tensors import Batch, Group, InverseKeyedJaggedTensor, KeyedJaggedTensor

__all__ = ["form_of", "join_samples", "pack_samples", "sample_bytes", "take_samples", "unpack_samples"]

NUM_MEASURED = 256
"""Samples of a batch that are packed to know how many bytes one has: about as many as move, and so as often with ids in
common."""

Bytes = npt.NDArray[np.uint8]
Int64s = npt.NDArray[np.int64]


def form_of(batch: Batch) -> int:
    """A number that is equal for batches with the same groups of features and columns, whose samples can be joined."""
    groups = [(type(group).__name__, group.keys, group.weights is not None) for group in batch.sparse]
    form = (batch.dense.shape[1], batch.labels.shape[1], batch.weights is not None, groups)
    return zlib.crc32(repr(form).encode())


def sample_bytes(batch: Batch) -> int:
    """About how many bytes a sample has that moves, if some of its batch move together."""
    places = np.unique(np.linspace(0, len(batch) - 1, min(len(batch), NUM_MEASURED)).astype(np.int64))
    return len(pack_samples(take_samples(batch, places))) // len(places)


def take_samples(batch: Batch, places: Int64s) -> Batch:
    """Some samples of a batch, int64 [n], with only the rows that they use, and without unique keys."""
    taken = replace(batch, unique_keys={}).take(torch.from_numpy(places))
    groups = [group.compact() if isinstance(group, InverseKeyedJaggedTensor) else group for group in taken.sparse]
    return replace(taken, sparse=tuple(groups), unique_keys={}, _keyed=None)


def pack_samples(batch: Batch) -> Bytes:
    """The bytes of a batch, for `unpack_samples`."""
    weights = np.empty(0, np.float32) if batch.weights is None else batch.weights.numpy()
    parts = [pack_numbers(np.array([len(batch)])), pack_numbers(batch.row_ids.numpy())]
    parts += [pack_floats(floats) for floats in (batch.dense.numpy(), batch.labels.numpy(), weights)]
    for group in batch.sparse:
        lengths_FR = _lengths(group)
        num_features, num_rows = lengths_FR.shape
        if isinstance(group, InverseKeyedJaggedTensor):
            parts += [pack_numbers(np.array([num_rows])), pack_numbers(group.inverse_lookup.numpy())]
        parts.append(pack_numbers(lengths_FR.reshape(-1), np.full(num_features, num_rows)))
        parts.append(pack_ids(_values(group), lengths_FR.sum(axis=1)))
        if group.weights is not None:
            parts.append(pack_floats(group.weights.numpy()))
    return np.concatenate(parts)


def unpack_samples(data: Bytes, like: Batch) -> Batch:
    """The batch of which `pack_samples` returned the bytes, and that has the form of another."""
    reader = NumberReader(data)
    (size,) = reader.take_numbers(1).tolist()
    row_ids = torch.from_numpy(reader.take_numbers(size))
    dense, labels = (
        torch.from_numpy(reader.take_floats(size * columns.shape[1])).view(size, -1)
        for columns in (like.dense, like.labels)
    )
    weights = torch.from_numpy(reader.take_floats(0 if like.weights is None else size))
    groups = tuple(_unpack_group(reader, group, size) for group in like.sparse)
    return Batch(dense, groups, labels, row_ids, None if like.weights is None else weights)


def join_samples(parts: Sequence[Batch]) -> Batch:
    """One batch of the samples of all parts, which have the same form, without unique keys."""
    if len(parts) == 1:
        return parts[0]
    weights = [part.weights for part in parts if part.weights is not None]
    return Batch(
        torch.cat([part.dense for part in parts]),
        tuple(_join([part.sparse[number] for part in parts]) for number in range(len(parts[0].sparse))),
        torch.cat([part.labels for part in parts]),
        torch.cat([part.row_ids for part in parts]),
        torch.cat(weights) if weights else None,
    )


def _lengths(group: Group) -> Int64s:
    """int64 [F, R], ids of each feature and row, or unique row."""
    return group.lengths.numpy().reshape(len(group.keys), -1).astype(np.int64)


def _values(group: Group) -> Int64s:
    """The ids, feature by feature, row by row."""
    if isinstance(group, InverseKeyedJaggedTensor) and group.starts is not None:
        group = group.unique
    return group.values.numpy()


def _unpack_group(reader: NumberReader, like: Group, size: int) -> Group:
    num_features, num_rows, inverse = len(like.keys), size, None
    if isinstance(like, InverseKeyedJaggedTensor):
        (num_rows,) = reader.take_numbers(1).tolist()
        inverse = torch.from_numpy(reader.take_numbers(size)).to(torch.int32)
    lengths = reader.take_numbers(np.full(num_features, num_rows))
    values = reader.take_ids(lengths.reshape(num_features, -1).sum(axis=1))
    weights: Tensor | None = None
    if like.weights is not None:
        weights = torch.from_numpy(reader.take_floats(len(values)))
    of_lengths = torch.from_numpy(lengths.astype(np.int32))
    plain = KeyedJaggedTensor.from_lengths(like.keys, torch.from_numpy(values), of_lengths, weights)
    return plain if inverse is None else InverseKeyedJaggedTensor.of_unique(plain, inverse)


def _join(groups: Sequence[Group]) -> Group:
    unique = [
        group
        if isinstance(group, InverseKeyedJaggedTensor)
        else InverseKeyedJaggedTensor.of_unique(group, torch.arange(group.stride, dtype=torch.int32))
        for group in groups
    ]
    joined = InverseKeyedJaggedTensor.concat(unique)
    return joined if isinstance(groups[0], InverseKeyedJaggedTensor) else joined.unique
