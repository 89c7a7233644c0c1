"""Validation of tensors, for use at API boundaries; hot paths trust their inputs."""

import torch
from torch import Tensor

from headrace.messages import shorten_list
from headrace.tensors.batch import Batch
from headrace.tensors.inverse_keyed_jagged import InverseKeyedJaggedTensor
from headrace.tensors.keyed_jagged import KeyedJaggedTensor

__all__ = ["validate", "validate_batch"]


def validate(tensor: KeyedJaggedTensor | InverseKeyedJaggedTensor) -> None:
    """Check that a jagged tensor is consistent.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Keys are duplicated, or sizes, lengths and offsets are inconsistent; the message has both values.
    """
    _expect_dtype("values", tensor.values, torch.int64)
    _expect_dtype("lengths", tensor.lengths, torch.int32)
    repeated = sorted({key for key in tensor.keys if tensor.keys.count(key) > 1})
    if repeated:
        raise ValueError(f"keys must be unique, given twice: {shorten_list(repeated)}")
    rows, name = tensor.stride, "stride"
    if isinstance(tensor, InverseKeyedJaggedTensor):
        rows, name = tensor.unique_stride, "unique_stride"
    expected = len(tensor.keys) * rows
    if tensor.lengths.numel() != expected:
        raise ValueError(
            f"lengths has {tensor.lengths.numel()} entries, expected keys x {name} = "
            f"{len(tensor.keys)} x {rows} = {expected}"
        )
    if bool((tensor.lengths < 0).any()):
        raise ValueError(f"lengths must not be negative, given {int(tensor.lengths.min())}")
    if isinstance(tensor, InverseKeyedJaggedTensor):
        _check_inverse(tensor)
    if tensor.offsets is not None:
        _check_offsets(tensor, tensor.offsets)
    if tensor.weights is not None:
        _expect_dtype("weights", tensor.weights, torch.float32)
        if tensor.weights.numel() != tensor.values.numel():
            raise ValueError(
                f"weights has {tensor.weights.numel()} entries, expected one per id = {tensor.values.numel()}"
            )


def _check_offsets(tensor: KeyedJaggedTensor | InverseKeyedJaggedTensor, given: Tensor) -> None:
    _expect_dtype("offsets", given, torch.int64)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), tensor.lengths.cpu().cumsum(0)])
    if not torch.equal(given.cpu(), offsets):
        raise ValueError("offsets must be the cumulative lengths, starting at 0")
    if tensor.values.numel() != int(offsets[-1]):
        raise ValueError(f"values has {tensor.values.numel()} ids, expected the sum of lengths = {int(offsets[-1])}")


def _check_inverse(tensor: InverseKeyedJaggedTensor) -> None:
    _expect_dtype("inverse_lookup", tensor.inverse_lookup, torch.int32)
    for bound in (tensor.inverse_lookup.min(), tensor.inverse_lookup.max()) if tensor.stride else ():
        if not 0 <= int(bound) < tensor.unique_stride:
            raise ValueError(
                f"inverse_lookup names unique row {int(bound)}, expected 0 to {tensor.unique_stride - 1} "
                f"(unique_stride {tensor.unique_stride})"
            )
    if (tensor.offsets is None) == (tensor.starts is None):
        given = "neither" if tensor.offsets is None else "both"
        raise ValueError(f"given {given} of offsets and starts, expected exactly one")
    if tensor.starts is None:
        return
    _expect_dtype("starts", tensor.starts, torch.int64)
    if tensor.starts.numel() != tensor.lengths.numel():
        raise ValueError(
            f"starts has {tensor.starts.numel()} entries, expected as many as lengths = {tensor.lengths.numel()}"
        )
    ends = tensor.starts + tensor.lengths
    outside = ((tensor.starts < 0) | (ends > tensor.values.numel())) & (tensor.lengths > 0)
    if bool(outside.any()):
        at = int(outside.nonzero()[0])
        raise ValueError(
            f"list {at} is at {int(tensor.starts[at])} to {int(ends[at])}, expected within the "
            f"{tensor.values.numel()} values"
        )


def validate_batch(batch: Batch) -> None:
    """Check that all tensors of a batch have the same number of rows and the right dtypes.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: Numbers of rows differ, or a feature occurs twice.
    """
    rows = len(batch)
    _expect_dtype("row_ids", batch.row_ids, torch.int64)
    for name, part in (("dense", batch.dense), ("labels", batch.labels), ("weights", batch.weights)):
        if part is None:
            continue
        _expect_dtype(name, part, torch.float32)
        if part.shape[0] != rows:
            raise ValueError(f"{name} has {part.shape[0]} rows, row_ids has {rows}")
    for group in batch.sparse:
        validate(group)
        if group.stride != rows:
            raise ValueError(f"sparse group {shorten_list(group.keys)} has {group.stride} rows, row_ids has {rows}")
    if len(set(batch.keys)) != len(batch.keys):
        raise ValueError("a sparse feature occurs in two groups")


def _expect_dtype(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    if tensor.dtype != dtype:
        raise TypeError(f"{name} is {tensor.dtype}, expected {dtype}")
