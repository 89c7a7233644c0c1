"""Operators that join several columns into ids: cartesian, ngram and id_list_transform."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from headrace.errors import ConfigError
from headrace.features.kernels import joins
from headrace.features.operator import Column, ColumnOperator, Kind
from headrace.features.registry import register

__all__ = ["Cartesian", "IdListTransform", "NGram", "concatenate_rows"]

IDS = (Kind.ID, Kind.IDS)


@register
class Cartesian(ColumnOperator):
    """One id for each ordered combination of ids, one from each column; the first column varies slowest.

    The id of (a, b) is `hash_128_to_64(a, twang_mix64(b))` of folly, truncated to 63 bits; the id of (a, b, c) is that
    of ((a, b), c). There is no public definition of how ids are combined.
    """

    name: ClassVar[str] = "cartesian"
    shorthand: ClassVar[str | None] = "max_length"
    takes: ClassVar[tuple[Kind, ...]] = IDS
    reads_row_ids: ClassVar[bool] = False
    purpose: ClassVar[str] = "one id for each combination of ids of two or more columns, at most `max_length` per row"

    max_length: int = Field(default=1024, ge=1)
    """Further combinations of a row are dropped: three lists of 100 ids would make a million."""

    def returns(self, kinds: Sequence[Kind]) -> Kind:
        if len(kinds) < 2:
            raise ConfigError(f"given {len(kinds)} column, expected at least two: name them with `from: [a, b]`")
        return Kind.IDS

    def apply(self, columns: Sequence[Column], row_ids: NDArray[np.int64]) -> Column:
        result = columns[0]
        for column in columns[1:]:
            result = self._pairs(result, column)
        return result

    def _pairs(self, first: Column, second: Column) -> Column:
        assert first.offsets is not None
        assert second.offsets is not None
        offsets = np.empty_like(first.offsets)
        joins.cartesian_sizes(first.offsets, second.offsets, self.max_length, offsets)
        ids = np.empty(offsets[-1], np.int64)
        joins.cartesian(first.values, first.offsets, second.values, second.offsets, offsets, ids)
        return Column(ids, offsets)


@register
class NGram(ColumnOperator):
    """One id for each run of `size` neighbouring ids; several columns are concatenated first.

    The id of a run is that of `cartesian`: ((a, b), c) for three. Shorter rows give no ids. There is no public
    definition.
    """

    name: ClassVar[str] = "ngram"
    shorthand: ClassVar[str | None] = "size"
    takes: ClassVar[tuple[Kind, ...]] = IDS
    reads_row_ids: ClassVar[bool] = False
    purpose: ClassVar[str] = "one id for each run of `size` consecutive ids in the concatenated lists of the columns"

    size: int = Field(default=2, ge=2)

    def returns(self, kinds: Sequence[Kind]) -> Kind:
        return Kind.IDS

    def apply(self, columns: Sequence[Column], row_ids: NDArray[np.int64]) -> Column:
        column = columns[0] if len(columns) == 1 else concatenate_rows(columns)
        assert column.offsets is not None
        grams, offsets = np.empty_like(column.values), np.empty_like(column.offsets)
        count = joins.n_grams(column.values, column.offsets, self.size, grams, offsets)
        return Column(grams[:count], offsets)


@register
class IdListTransform(ColumnOperator):
    """Set operations on two columns: the ids of the first that are, or are not, in the second, in order.

    A repeated id stays repeated. The public list of operators only says that it intersects two lists.
    """

    name: ClassVar[str] = "id_list_transform"
    shorthand: ClassVar[str | None] = "keep"
    takes: ClassVar[tuple[Kind, ...]] = IDS
    reads_row_ids: ClassVar[bool] = False
    purpose: ClassVar[str] = "ids of the first column that are in the second (`intersection`) or are not (`difference`)"

    keep: Literal["intersection", "difference"] = "intersection"

    def returns(self, kinds: Sequence[Kind]) -> Kind:
        if len(kinds) != 2:
            raise ConfigError(f"given {len(kinds)} columns, expected two: name them with `from: [a, b]`")
        return Kind.IDS

    def apply(self, columns: Sequence[Column], row_ids: NDArray[np.int64]) -> Column:
        first, second = columns
        assert first.offsets is not None
        assert second.offsets is not None
        ids, offsets = np.empty_like(first.values), np.empty_like(first.offsets)
        count = joins.transform_ids(
            first.values, first.offsets, second.values, second.offsets, self.keep == "intersection", ids, offsets
        )
        return Column(ids[:count], offsets)


def concatenate_rows(columns: Sequence[Column]) -> Column:
    """Concatenate each row's lists, in the order of the columns."""
    sizes = np.stack([np.diff(column.offsets) for column in columns if column.offsets is not None], axis=1)
    # Positions in the concatenated values, gathered row by row.
    starts = np.stack([column.offsets[:-1] for column in columns if column.offsets is not None], axis=1)
    starts = starts + np.cumsum([0, *(len(column.values) for column in columns[:-1])])
    flat = sizes.reshape(-1)
    ends = np.cumsum(flat)
    within = np.arange(int(flat.sum())) - np.repeat(ends - flat, flat)
    values = np.concatenate([column.values for column in columns])
    offsets = np.concatenate([[0], np.cumsum(sizes.sum(axis=1))]).astype(np.int64)
    return Column(values[np.repeat(starts.reshape(-1), flat) + within], offsets)
