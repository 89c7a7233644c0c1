"""Checks of tensors at the border: hot paths trust their inputs, these functions do not."""

import torch
from torch import Tensor

from headrace.tensors.batch import Batch
from headrace.tensors.keyed_jagged import KeyedJaggedTensor

__all__ = ["validate", "validate_batch"]


def validate(tensor: KeyedJaggedTensor) -> None:
    """Check that a `KeyedJaggedTensor` is consistent.

    Raises:
        TypeError: A part has the wrong dtype.
        ValueError: Keys repeat, or sizes, lengths and offsets disagree; names both sides.
    """
    _expect_dtype("values", tensor.values, torch.int64)
    _expect_dtype("lengths", tensor.lengths, torch.int32)
    _expect_dtype("offsets", tensor.offsets, torch.int64)
    repeated = sorted({key for key in tensor.keys if tensor.keys.count(key) > 1})
    if repeated:
        raise ValueError(f"keys must all be different, given twice: {', '.join(repeated)}")
    expected = len(tensor.keys) * tensor.stride
    if tensor.lengths.numel() != expected:
        raise ValueError(
            f"lengths has {tensor.lengths.numel()} entries, expected keys x stride = "
            f"{len(tensor.keys)} x {tensor.stride} = {expected}"
        )
    if bool((tensor.lengths < 0).any()):
        raise ValueError(f"lengths must not be negative, given {int(tensor.lengths.min())}")
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), tensor.lengths.cpu().cumsum(0)])
    if not torch.equal(tensor.offsets.cpu(), offsets):
        raise ValueError("offsets must be the cumulated lengths, starting at 0")
    if tensor.values.numel() != int(offsets[-1]):
        raise ValueError(f"values has {tensor.values.numel()} ids, expected the sum of lengths = {int(offsets[-1])}")
    if tensor.weights is not None:
        _expect_dtype("weights", tensor.weights, torch.float32)
        if tensor.weights.numel() != tensor.values.numel():
            raise ValueError(
                f"weights has {tensor.weights.numel()} entries, expected one per id = {tensor.values.numel()}"
            )


def validate_batch(batch: Batch) -> None:
    """Check that all parts of a batch have the same number of rows and the right dtypes.

    Raises:
        TypeError: A part has the wrong dtype.
        ValueError: Parts disagree in their number of rows, or a feature occurs twice.
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
            raise ValueError(f"sparse group {', '.join(group.keys)} has {group.stride} rows, row_ids has {rows}")
    if len(set(batch.keys)) != len(batch.keys):
        raise ValueError("a sparse feature occurs in two groups")


def _expect_dtype(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    if tensor.dtype != dtype:
        raise TypeError(f"{name} is {tensor.dtype}, expected {dtype}")
