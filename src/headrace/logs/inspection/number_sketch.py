"""`NumberSketch`: the distribution of a column of numbers in a few kilobytes.

Numbers are counted in buckets: those with the same sign, exponent and first 5 bits of the mantissa share one. So a
bucket is at most 1/32 of its number wide, and small integers have one of their own. Quantiles are exact up to the width
of a bucket (as in DDSketch, Masson, Rim and Lee, VLDB 2019), for any order of the rows and any number of batches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["NumberSketch", "signed_log1p"]

Floats = npt.NDArray[np.float64]

SHIFT = 18
"""Bits of a float32 that a bucket leaves out: 18 of the mantissa's 23."""

LAST = int(np.array(np.finfo(np.float32).max).view(np.int32)) >> SHIFT
"""Number of the last bucket; those of negative numbers are negative."""


def signed_log1p(numbers: npt.ArrayLike) -> Floats:
    """sign(x) log(1 + |x|), as of the operator `log1p`."""
    return np.copysign(np.log1p(np.abs(numbers)), numbers)


class NumberSketch:
    """Counts finite numbers in buckets.

    Attributes:
        num_values: Numbers counted.
    """

    def __init__(self) -> None:
        self.num_values = 0
        self._buckets = np.zeros(0, np.int64)
        self._counts = np.zeros(0, np.int64)

    def add(self, numbers: npt.NDArray[Any]) -> None:
        """Add finite numbers of any type, of which those beyond float32 count as its largest."""
        largest = np.finfo(np.float32).max
        floats = np.clip(numbers.astype(np.float64), -largest, largest).astype(np.float32)
        buckets = np.abs(floats).view(np.int32) >> SHIFT
        np.negative(buckets, out=buckets, where=floats < 0)
        counts = np.bincount(buckets + LAST, minlength=2 * LAST + 1)
        found = np.flatnonzero(counts)
        merged = np.union1d(self._buckets, found - LAST)
        total = np.zeros(len(merged), np.int64)
        total[np.searchsorted(merged, self._buckets)] += self._counts
        total[np.searchsorted(merged, found - LAST)] += counts[found]
        self._buckets, self._counts = merged, total
        self.num_values += len(numbers)

    def bounds(self, low_ratio: float, high_ratio: float) -> tuple[float, float]:
        """Bounds that leave out at most the given share of the numbers on each side, to the width of a bucket.

        Args:
            low_ratio: Share of the numbers below the lower bound.
            high_ratio: Share of the numbers above the upper bound.
        """
        below = np.cumsum(self._counts)
        first = int(np.searchsorted(below, low_ratio * self.num_values, side="right"))
        last = int(np.searchsorted(below, (1 - high_ratio) * self.num_values, side="left"))
        edges = self._edges()
        return float(edges[0][min(first, len(below) - 1)]), float(edges[1][min(last, len(below) - 1)])

    def moments(self, function: Callable[[Floats], Floats]) -> tuple[float, float]:
        """Mean and standard deviation of a function of the numbers, taken in the middle of their buckets."""
        low, high = self._edges()
        values = function((low + high) / 2)
        mean = float(values @ self._counts) / self.num_values
        return mean, float(np.sqrt((values - mean) ** 2 @ self._counts / self.num_values))

    def _edges(self) -> tuple[Floats, Floats]:
        """The smallest and the largest number of each bucket. Integers and short fractions are an edge."""
        near = (np.abs(self._buckets) << SHIFT).astype(np.int32).view(np.float32).astype(np.float64)
        width = ((np.abs(self._buckets) + 1) << SHIFT).astype(np.int32)
        far = np.nextafter(width.view(np.float32), np.float32(0)).astype(np.float64)
        is_negative = self._buckets < 0
        return np.where(is_negative, -far, near), np.where(is_negative, -near, far)
