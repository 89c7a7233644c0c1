"""Axes of plots: scales, ticks, number formats, and thinning of long columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from headrace.observe.progress import format_count, format_duration
from headrace.observe.run_data import Floats
from headrace.resources import format_bytes

__all__ = ["FORMATS", "Scale", "bucket_means", "nice_ticks", "tick_writer"]

FORMATS: dict[str, Callable[[float], str]] = {
    "number": lambda value: f"{value:.4g}",
    "metric": lambda value: f"{value:.4f}",
    "count": format_count,
    "bytes": format_bytes,
    "ms": lambda value: f"{value:.3g} ms",
    "ratio": lambda value: f"{100 * value:.0f} %",
    "cpus": lambda value: f"{value:.2f}",
    "time": format_duration,
}
"""Number formats, shared by an axis and its tooltips."""


@dataclass(frozen=True)
class Scale:
    """Maps a range of values to a range of pixels."""

    low: float
    high: float
    first_px: float
    last_px: float

    def __call__(self, values: Floats | float) -> Floats:
        share = (np.asarray(values, dtype=np.float64) - self.low) / (self.high - self.low)
        return np.asarray(self.first_px + share * (self.last_px - self.first_px), dtype=np.float64)


def bucket_means(values: Floats, num_buckets: int) -> tuple[Floats, Floats, Floats]:
    """Mean, 10th and 90th percentile of equal-sized buckets, ignoring NaNs (NaN if a bucket has only NaNs).

    Args:
        values: float64 [n].
        num_buckets: Maximum number of buckets.

    Returns:
        Three arrays of shape [min(n, num_buckets)].
    """
    if len(values) <= num_buckets:
        return values, values, values
    result = np.full((3, num_buckets), np.nan)
    for index, bucket in enumerate(np.array_split(values, num_buckets)):
        known = bucket[np.isfinite(bucket)]
        if len(known):
            result[:, index] = known.mean(), *np.percentile(known, [10, 90])
    return result[0], result[1], result[2]


def nice_ticks(low: float, high: float, num_ticks: int, *, kind: str = "number") -> list[float]:
    """Round numbers within [low, high], about `num_ticks` of them.

    Args:
        low: Lower end of the axis.
        high: Upper end of the axis, above `low`.
        num_ticks: Desired number of ticks; there may be fewer.
        kind: Key of `FORMATS`: "bytes" steps by powers of two, "time" like a clock, others by 1, 2 or 5.
    """
    step = (high - low) / max(1, num_ticks)
    if kind == "time" and step > 1:
        clock = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400]
        step = next((size for size in clock if size >= step), 86400 * math.ceil(step / 86400))
    elif kind == "bytes" and step > 1:
        step = 2.0 ** math.ceil(math.log2(step))
    else:
        power = 10.0 ** math.floor(math.log10(step))
        step = next(power * size for size in (1, 2, 5, 10) if power * size >= step * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def tick_writer(kind: str, ticks: Sequence[float]) -> Callable[[float], str]:
    """A formatter for the ticks of an axis, with one unit and as few digits as distinguish them."""
    largest = max((abs(tick) for tick in ticks), default=0.0)
    step = ticks[1] - ticks[0] if len(ticks) > 1 else largest or 1.0
    if kind == "bytes":
        return format_bytes
    if kind == "ratio":
        return FORMATS[kind]
    if kind == "time":
        return lambda value: "0" if not value else f"{value:g} s" if largest < 60 else format_duration(value)
    size, unit = next(
        ((s, u) for s, u in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if kind == "count" and largest >= s), (1, "")
    )
    digits = max(0, -math.floor(math.log10(step / size) + 1e-9))
    return lambda value: f"{value / size:.{digits}f}{unit}" if value else "0"
