"""A plan's columns found in a record batch's schema: where each lies, how to read it, and what to cast first."""

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
    """A column to cast before it is read.

    Attributes:
        position: Of the column, or of the group column that holds it, in the batch.
        inner: Of a feature in its group; -1 for a plain column.
        name: Of the column.
        cast: What to do.
    """

    position: int
    inner: int
    name: str
    cast: ColumnCast


@dataclass(frozen=True)
class Binding:
    """How to read the columns of batches that have one Arrow schema.

    Attributes:
        schema: Of the batches.
        layout: int64 [N, 5], as `headrace.features.kernels.sources.read_batch` wants it.
        conversions: Columns to cast before reading; those that the kernels read as they are need none.
        homes: Position of the group column that holds each source, -1 for plain columns.
    """

    schema: pa.Schema
    layout: NDArray[np.int64]
    conversions: tuple[_Conversion, ...]
    homes: tuple[int, ...]

    def convert(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch with all columns in types the kernels read; the batch itself where nothing is to do.

        Raises:
            DataError: A value cannot be cast; names column, row and value.
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

    Columns are cast as those of a log are when it is read, so that a value gives the same feature whichever way it
    came. Types whose values the kernels read as that cast would give them are read where they lie.

    Args:
        schema: Of the record batches.
        columns: Names, in the order of the plan's sources; None for sources that are not in the batch.
        kinds: What the plan expects of each.
        log_schema: What the columns are.

    Raises:
        DataError: If a column is missing or its type does not suit; names column, type and what was expected.
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
        # Text is looked at in any case: empty text is null. Views, which groups have, come from a log that has done so.
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
    """Position of a column, or of its group and in that, and its type."""
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
    """Refuse types none of whose values could be cast."""
    inside = canonical_type(given)
    if pt.is_null(inside):
        return
    element = canonical_type(inside.value_type) if is_list(inside) else inside
    if is_list(inside) != kind.is_list or pt.is_nested(element):
        raise DataError(f"column {name}: given Arrow type {given}, expected {kind.value}")


def _is_read_as_it_is(given: pa.DataType, target: pa.DataType, log_schema: Schema, name: str) -> bool:
    """Whether the kernels read a type so that the values are those of the cast."""
    if is_list(given):
        return is_list(target) and _is_read_as_it_is(given.value_type, target.value_type, log_schema, name)
    if is_list(target):
        return False
    if pt.is_floating(target):
        # What float32 does not hold is rounded before any operator sees it, where the cast is to float32.
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
