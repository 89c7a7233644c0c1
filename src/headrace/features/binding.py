"""Binds a plan to a record batch's schema: where each column is, how to read it, and which ones to cast first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.types as pt
from numpy.typing import NDArray

from headrace.errors import DataError
from headrace.features.kernels.sources import element_type, list_shape
from headrace.features.operator import Kind
from headrace.logs.canonical import canonical_type, is_list, is_text
from headrace.logs.columns import SMALL_NUMBERS, ColumnCast, column_cast
from headrace.logs.gathering import is_list_view
from headrace.logs.groups import feature_names, find_group, group_array, group_of
from headrace.logs.raw_rows import shown
from headrace.logs.schema import Schema
from headrace.messages import shorten_list

__all__ = ["Binding", "bind"]


@dataclass(frozen=True)
class _Conversion:
    """A column to cast before reading.

    Attributes:
        position: Position in the batch of the column, or of the group column that holds it.
        inner: Position of a feature in its group column; -1 for a plain column.
        name: Name of the column.
        cast: The conversion.
    """

    position: int
    inner: int
    name: str
    cast: ColumnCast


@dataclass(frozen=True)
class Binding:
    """How to read the columns of batches that have one Arrow schema.

    Attributes:
        schema: Arrow schema of the batches.
        layout: int64 [N, 5], the argument of `headrace.features.kernels.sources.read_batch`.
        conversions: Columns to cast before reading. Columns that the kernels read directly have none.
        homes: Position of the group column that holds each source, -1 for plain columns.
    """

    schema: pa.Schema
    layout: NDArray[np.int64]
    conversions: tuple[_Conversion, ...]
    homes: tuple[int, ...]

    def convert(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Cast all columns to types that the kernels read; returns the batch itself if nothing needs a cast.

        Raises:
            DataError: A value cannot be cast; the message names column, row and value.
        """
        for conversion in self.conversions:
            position, column = conversion.position, batch.column(conversion.position)
            if conversion.inner < 0:
                values = _cast(conversion, column)
            else:
                unique, inverse = group_of(column)
                features = {field.name: unique.field(field.name) for field in unique.type}
                features[conversion.name] = _cast(conversion, features[conversion.name])
                values = group_array(features, inverse)
            if values is not column:
                batch = batch.set_column(position, pa.field(batch.schema.names[position], values.type), values)
        return batch


def bind(schema: pa.Schema, columns: Sequence[str | None], kinds: Mapping[str, Kind], log_schema: Schema) -> Binding:
    """Find columns in an Arrow schema.

    Columns are cast exactly as log readers cast them, so a value gives the same feature however it arrived. Types that
    the kernels read with the same result are not cast.

    Args:
        schema: Arrow schema of the record batches.
        columns: Column names in the order of the plan's sources; None for sources that are not in the batch.
        kinds: The kind that the plan expects of each column.
        log_schema: Schema of the log.

    Raises:
        DataError: A column is missing or has an unsuitable type; the message names the column, its type and the
            expected kind.
    """
    layout = np.zeros((len(columns), 5), dtype=np.int64)
    conversions: dict[tuple[int, int], _Conversion] = {}
    homes = [-1] * len(columns)
    for row, name in enumerate(columns):
        if name is None:
            layout[row, 0] = -1
            continue
        position, inner, given = _find(schema, name)
        cast = column_cast(log_schema, name, given)
        _check(name, given, kinds[name])
        read = given
        if not _is_read_as_it_is(given, cast.type, log_schema, name):
            read = cast.type
        # Text always needs a check, because empty text is null. Views, used by groups, were checked when the log was
        # read.
        if read is not given or (_has_text(given) and not is_list_view(given)):
            conversions[position, inner] = _Conversion(position, inner, name, cast)
            read = cast.type
        element = element_type(read.value_type if is_list(read) else read)
        assert element is not None, read
        list_size = read.list_size if pt.is_fixed_size_list(read) else 0
        layout[row] = position, list_shape(read), element, list_size, inner
        homes[row] = position if inner >= 0 else -1
    return Binding(schema, layout, tuple(conversions.values()), tuple(homes))


def _find(schema: pa.Schema, name: str) -> tuple[int, int, pa.DataType]:
    """Position of a column (or of its group column, and within it), and its type."""
    position = schema.get_field_index(name)
    if position >= 0:
        return position, -1, schema.field(position).type
    home = find_group(schema, name)
    if home is None:
        raise DataError(f"column {name}: missing in the batch, which has {shorten_list(feature_names(schema))}")
    position = schema.get_field_index(home)
    unique = schema.field(position).type.value_type
    inner = unique.get_field_index(name)
    return position, inner, unique.field(inner).type


def _check(name: str, given: pa.DataType, kind: Kind) -> None:
    """Refuse types that can never be cast."""
    inside = canonical_type(given)
    if pt.is_null(inside):
        return
    element = canonical_type(inside.value_type) if is_list(inside) else inside
    if is_list(inside) != kind.is_list or pt.is_nested(element):
        raise DataError(f"column {name}: given Arrow type {given}, expected {kind.value}")


def _is_read_as_it_is(given: pa.DataType, target: pa.DataType, log_schema: Schema, name: str) -> bool:
    """Whether the kernels read a type directly with the same result as the cast."""
    if is_list(given):
        return is_list(target) and _is_read_as_it_is(given.value_type, target.value_type, log_schema, name)
    if is_list(target):
        return False
    if pt.is_floating(target):
        # A cast to float32 rounds values before any operator sees them.
        is_wide = pt.is_integer(given) or pt.is_float64(given)
        return given in SMALL_NUMBERS or bool(is_wide and pt.is_float64(target))
    if pt.is_integer(target):
        clock = log_schema.timestamp
        if clock is not None and clock.name == name:
            is_tick = pt.is_integer(given) and not pt.is_uint64(given)
            return bool(is_tick or (pt.is_timestamp(given) and given.unit == clock.unit))
        return bool(pt.is_integer(given) or pt.is_boolean(given))
    return bool(pt.is_string(given) or pt.is_large_string(given))


def _has_text(kind: pa.DataType) -> bool:
    return is_text(kind.value_type if is_list(kind) else kind)


def _cast(conversion: _Conversion, column: pa.Array) -> pa.Array:
    values, bad = conversion.cast.cast(column)
    if bad is not None and bad.any():
        row = int(np.argmax(bad))
        raise DataError(
            f"column {conversion.name}: row {row} of the batch: {conversion.cast.reason}, "
            f"given {shown(column.slice(row, 1))}"
        )
    return values
