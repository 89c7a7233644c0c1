"""The area under the ROC curve, from counts of rows in the order of their predictions."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["area_under_curve"]

Floats = NDArray[np.float64]


def area_under_curve(negatives: Floats, positives: Floats) -> tuple[float, float]:
    """Share of (positive, negative) pairs of rows in the right order, pairs in the same bin counting one half.

    Args:
        negatives: float64 [N], weight of the negative rows of each bin, by ascending prediction.
        positives: float64 [N], weight of the positive rows.

    Returns:
        The area, and the share of pairs in the same bin; both NaN if there are no pairs.
    """
    pairs = float(positives.sum() * negatives.sum())
    if pairs == 0:
        return math.nan, math.nan
    below = np.cumsum(negatives) - negatives
    tied = float(positives @ negatives)
    return float(positives @ below + 0.5 * tied) / pairs, tied / pairs
