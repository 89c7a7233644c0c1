"""Rows as int8 for publications: a scale per row in two bytes, so that a row of dimension 16 takes 18 bytes.

The scale is the row's greatest magnitude divided by 127, rounded up to a bf16 number. Merging segments copies the
bytes, so a row has the same values in every segment, and each replica computes the same float32 numbers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headrace.embeddings.changes.delta import Columns
from headrace.embeddings.changes.encoding import from_bf16

__all__ = ["quantized", "weights_of"]

VALUES, SCALES = "weights.int8", "weights.scale"
NOT_A_NUMBER = 0x7FC0  # in bf16


def quantized(columns: Columns) -> Columns:
    """The columns of a block of rows with float32 weights as int8; others stay.

    The error is up to 1/252 of the row's greatest magnitude. A row with a number that is not finite becomes NaN.

    Args:
        columns: `weights` float32 [R, D], and others.

    Returns:
        `weights.int8` int8 [R, D] and `weights.scale` uint16 [R], the bits of bf16, in place of `weights`.
    """
    weights = columns["weights"]
    if weights.dtype != np.float32:
        return columns
    others = {name: column for name, column in columns.items() if name != "weights"}
    greatest = np.abs(weights).max(axis=1, initial=0).astype(np.float32)
    is_finite = np.isfinite(greatest)
    if not is_finite.all():
        weights, greatest = np.where(is_finite[:, None], weights, 0), np.where(is_finite, greatest, 0)
    bits = (greatest / np.float32(127)).view(np.uint32)
    scales = ((bits + np.uint32(0xFFFF)) >> np.uint32(16)).astype(np.uint16)  # up, so that no value is above 127
    divisors = from_bf16(scales)
    values = np.rint(weights / np.where(divisors > 0, divisors, np.float32(1))[:, None])
    scales[~is_finite] = NOT_A_NUMBER
    return {**others, VALUES: values.astype(np.int8), SCALES: scales}


def weights_of(columns: Columns) -> npt.NDArray[np.generic]:
    """The weights of a block of rows.

    Returns:
        float32 [R, D], or as they are stored in tables of other row formats, see `tables.state`.
    """
    if VALUES not in columns:
        weights: npt.NDArray[np.generic] = columns["weights"]
        return weights
    floats: npt.NDArray[np.float32] = columns[VALUES] * from_bf16(columns[SCALES])[:, None]
    return floats
