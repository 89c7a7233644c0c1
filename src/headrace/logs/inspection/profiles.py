"""`ColumnProfile`: statistics of a column, accumulated batch by batch in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from headrace.logs.canonical import canonical, canonical_type
from headrace.logs.inspection.hashing import Hashes, hash_column, is_list
from headrace.logs.inspection.id_counter import MAX_SLOTS, IdCounter
from headrace.logs.inspection.number_sketch import NumberSketch, signed_log1p

__all__ = ["ColumnProfile", "kind_of"]

TEXTS_LOOKED_AT = 1_000
"""Strings of each batch that are checked for being numerals."""

MAX_LENGTH = 1 << 16
"""Maximum list length in percentiles (not in mean and maximum)."""


def kind_of(kind: pa.DataType) -> str:
    """The kind of a type: "bool", "int", "float", "string", "time", "list of ..." or "other"."""
    kind = canonical_type(kind)
    if is_list(kind):
        return f"list of {kind_of(kind.value_type)}"
    if pt.is_decimal(kind):
        return "int" if kind.scale <= 0 else "float"
    tests = {
        "bool": pt.is_boolean,
        "int": pt.is_integer,
        "float": pt.is_floating,
        "string": pt.is_string,
        "time": lambda kind: pt.is_timestamp(kind) or pt.is_date(kind),
    }
    return next((name for name, test in tests.items() if test(kind)), "other")


class ColumnProfile:
    """Statistics of one column; batches must be added in log order.

    Attributes:
        name: Name of the column.
        types: Arrow types in the files, in order; several if files differ.
        type: The common type of all files.
        kind: Kind of the common type, see `kind_of`.
        num_rows: Number of rows, including nulls.
        num_nulls: Number of null rows.
        ids: Counter of distinct values, or for lists of their elements.
        numbers: Distribution of the finite numbers; empty for other kinds than int and float.
        num_null_elements: Number of list elements that are null or not valid text.
        num_not_finite: Number of NaNs and infinities.
        num_zero_or_one: Number of values that are 0 or 1.
        num_backward: Number of values smaller than the previous one; 0 if the column is sorted.
        is_whole: Whether all numbers are integers.
        is_numeral: Whether all strings consist of digits, also those in lists; checks the first ones of each batch.
    """

    def __init__(
        self, name: str, kind: pa.DataType, *, types: Iterable[pa.DataType] = (), max_slots: int = MAX_SLOTS
    ) -> None:
        """Start empty, for a column with common type `kind` and file types `types`; `max_slots` limits the id
        counter."""
        self.name = name
        self.types = tuple(types) or (kind,)
        self.type = kind
        self.kind = kind_of(kind)
        self.is_dictionary = any(pt.is_dictionary(stored) for stored in self.types)
        self.num_rows = 0
        self.num_nulls = 0
        self.ids = IdCounter(max_slots)
        self.numbers = NumberSketch()
        self.num_null_elements = 0
        self.num_not_finite = 0
        self.num_zero_or_one = 0
        self.num_backward = 0
        self.is_whole = True
        self.is_numeral = self.kind.endswith("string")
        self.min: float | int | None = None
        self.max: float | int | None = None
        self._sum = 0.0
        self._num_summed = 0
        self._num_logs = 0
        self._mean_log = self._squares_log = 0.0  # the squares are of distances from the mean
        self._last: float | None = None
        self._lengths = np.zeros(0, dtype=np.int64)
        self._max_length = 0

    def update(self, array: pa.Array) -> Hashes | None:
        """Add the next rows of the column, in the common type.

        Returns:
            Hashes of the values, or None for types without hashes.
        """
        array = canonical(array).values
        self.num_rows += len(array)
        self.num_nulls += array.null_count
        hashes = hash_column(array)
        if self.is_numeral:
            self._look_for_numerals(array)
        if is_list(array.type):
            self._add_lists(array)
        elif hashes is not None:
            self.ids.add(hashes[_valid(array)] if array.null_count else hashes)
            if self.kind in ("bool", "int", "float", "time") and self.kind == kind_of(array.type):
                self._add_numbers(array)
        return hashes

    @property
    def num_values(self) -> int:
        """Number of non-null rows."""
        return self.num_rows - self.num_nulls

    @property
    def null_ratio(self) -> float:
        """Fraction of null rows."""
        return self.num_nulls / self.num_rows if self.num_rows else 0.0

    @property
    def mean(self) -> float | None:
        """Mean of the finite numbers; for a label, its rate."""
        return self._sum / self._num_summed if self._num_summed else None

    @property
    def log_moments(self) -> tuple[float, float]:
        """Mean and standard deviation of `signed_log1p` of the finite numbers."""
        return self._mean_log, math.sqrt(self._squares_log / max(1, self._num_logs))

    @property
    def is_list(self) -> bool:
        """Whether the column contains lists."""
        return self.kind.startswith("list of ")

    @property
    def mean_length(self) -> float:
        """Mean length of non-null lists."""
        return self.ids.num_values / self.num_values if self.num_values else 0.0

    @property
    def row_bytes(self) -> float:
        """Mean bytes per row in memory; strings count as 16."""
        item = canonical_type(self.type.value_type if self.is_list else self.type)
        width = item.bit_width / 8 if pt.is_primitive(item) else 16.0
        return self.ids.num_values / max(self.num_rows, 1) * width + 4.0 if self.is_list else width

    @property
    def max_length(self) -> int:
        """Maximum list length."""
        return self._max_length

    def percentile_length(self, percent: float) -> int:
        """Percentile of list lengths."""
        total = np.cumsum(self._lengths)
        return int(np.searchsorted(total, percent / 100 * total[-1])) if len(total) and total[-1] else 0

    def to_dict(self) -> dict[str, Any]:
        """The statistics as JSON-able values."""
        result: dict[str, Any] = {
            "type": " / ".join(map(str, self.types)),
            "kind": self.kind,
            "rows": self.num_rows,
            "nulls": self.num_nulls,
            "null_ratio": self.null_ratio,
            "distinct": round(self.ids.num_distinct()),
            "distinct_is_exact": self.ids.is_exact,
            "top_1_percent_share": self.ids.top_share(),
        }
        if self.is_list:
            result |= {
                "mean_length": self.mean_length,
                "p50_length": self.percentile_length(50),
                "p99_length": self.percentile_length(99),
                "max_length": self.max_length,
            }
        elif self._num_summed:
            result |= {"min": self.min, "max": self.max, "mean": self.mean, "not_finite": self.num_not_finite}
        return result

    def _add_numbers(self, array: pa.Array) -> None:
        if array.null_count:
            array = array.drop_null()
        if pt.is_decimal(array.type):
            array = _as_number(array)
        if pt.is_date(array.type):
            array = array.cast(pa.timestamp("ms"))
        if pt.is_timestamp(array.type):
            array = array.cast(pa.int64())
        if pt.is_floating(array.type):
            finite = pc.is_finite(array)
            kept = array.filter(finite)
            self.num_not_finite += len(array) - len(kept)
            array = kept
        elif pt.is_boolean(array.type):
            array = array.cast(pa.int8())
        if not len(array):
            return
        ends = pc.min_max(array)
        low, high = ends["min"].as_py(), ends["max"].as_py()
        self.min = low if self.min is None else min(self.min, low)
        self.max = high if self.max is None else max(self.max, high)
        numbers = array.to_numpy(zero_copy_only=False)
        with np.errstate(over="ignore"):
            self._sum += float(numbers.sum(dtype=np.float64))
        self._num_summed += len(numbers)
        self.num_zero_or_one += int(np.count_nonzero((numbers == 0) | (numbers == 1)))
        self.num_backward += int(np.count_nonzero(numbers[1:] < numbers[:-1]))
        self.num_backward += int(self._last is not None and numbers[0] < self._last)
        self._last = numbers[-1]
        if self.kind in ("int", "float"):
            self.numbers.add(numbers)
            self._add_logs(numbers.astype(np.float64))
        if self.is_whole and pt.is_floating(array.type):
            self.is_whole = bool((np.floor(numbers) == numbers).all())

    def _add_logs(self, numbers: npt.NDArray[np.float64]) -> None:
        """Add to the moments of logs (Chan, Golub and LeVeque, 1979: nothing cancels where the mean is large)."""
        logs = signed_log1p(numbers)
        mean, total = float(logs.mean()), self._num_logs + len(logs)
        self._squares_log += float(np.square(logs - mean).sum())
        self._squares_log += (mean - self._mean_log) ** 2 * len(logs) * self._num_logs / total
        self._mean_log += (mean - self._mean_log) * len(logs) / total
        self._num_logs = total

    def _look_for_numerals(self, array: pa.Array) -> None:
        texts = array.slice(0, TEXTS_LOOKED_AT)
        texts = canonical(texts.flatten()).values if is_list(array.type) else texts
        if pt.is_string(texts.type) or pt.is_large_string(texts.type):
            try:
                self.is_numeral = pc.all(pc.utf8_is_digit(texts)).as_py() is not False
            except pa.ArrowInvalid:  # no UTF-8
                self.is_numeral = False

    def _add_lists(self, array: pa.Array) -> None:
        lengths = pc.list_value_length(array).drop_null().to_numpy(zero_copy_only=False).astype(np.int64)
        if len(lengths):
            self._max_length = max(self._max_length, int(lengths.max()))
            counts = np.bincount(np.minimum(lengths, MAX_LENGTH), minlength=len(self._lengths))
            counts[: len(self._lengths)] += self._lengths
            self._lengths = counts
        elements = canonical(array.flatten()).values
        self.num_null_elements += elements.null_count
        hashes = hash_column(elements)
        if hashes is not None:
            self.ids.add(hashes[_valid(elements)] if elements.null_count else hashes)


def _as_number(array: pa.Array) -> pa.Array:
    """Convert decimals to integers, or to floats if they have fractions or do not fit."""
    try:
        return array.cast(pa.int64())
    except pa.ArrowInvalid:
        return array.cast(pa.float64())


def _valid(array: pa.Array) -> npt.NDArray[np.bool_]:
    return np.asarray(array.is_valid().to_numpy(zero_copy_only=False), dtype=np.bool_)
