"""A plan's columns found in a record batch's schema: where each lies, how to read it, and what to convert first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.errors import DataError
from headrace.features.operator import Kind
from headrace.features.sources import STRING32, STRING64, VIEW32, VIEW64, element_type, list_shape
from headrace.logs.gathering import gather
from headrace.logs.groups import feature_names, find_group, group_array, group_of

__all__ = ["Binding", "bind"]


@dataclass(frozen=True)
class Binding:
    """How to read the columns of batches that have one Arrow schema.

    Attributes:
        schema: Of the batches.
        layout: int64 [N, 5], as `headrace.features.sources.read_batch` wants it.
        conversions: Position of a column, position in its group (-1 for a plain column) and type, of what to convert
            before reading; empty for types the kernels read.
        homes: Position of the group column that holds each source, -1 for plain columns.
    """

    schema: pa.Schema
    layout: NDArray[np.int64]
    conversions: tuple[tuple[int, int, pa.DataType], ...]
    homes: tuple[int, ...]

    def convert(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch with all columns in types the kernels read; the batch itself where nothing is to do."""
        for position, inner, type_ in self.conversions:
            name, column = batch.schema.names[position], batch.column(position)
            column = _convert(column, type_) if inner < 0 else _convert_in_group(column, inner, type_)
            batch = batch.set_column(position, pa.field(name, column.type), column)
        return batch


def bind(
    schema: pa.Schema, columns: Sequence[str | None], kinds: Mapping[str, Kind], units: Mapping[str, str]
) -> Binding:
    """Find columns in an Arrow schema.

    Args:
        schema: Of the record batches.
        columns: Names, in the order of the plan's sources; None for sources that are not in the batch.
        kinds: What the plan expects of each.
        units: Names of columns that are moments, with the unit the plan expects ("ms").

    Raises:
        DataError: If a column is missing or its type does not suit; names column, type and what was expected.
    """
    layout = np.zeros((len(columns), 5), dtype=np.int64)
    conversions: dict[tuple[int, int], pa.DataType] = {}
    homes = [-1] * len(columns)
    for row, name in enumerate(columns):
        if name is None:
            layout[row, 0] = -1
            continue
        position, inner, given = _find(schema, name)
        type_ = _readable(given, kinds[name], units.get(name))
        layout[row] = position, *_check(name, given, type_, kinds[name]), inner
        homes[row] = position if inner >= 0 else -1
        if type_ != given:
            conversions[position, inner] = type_
    return Binding(schema, layout, tuple((*place, type_) for place, type_ in conversions.items()), tuple(homes))


def _find(schema: pa.Schema, name: str) -> tuple[int, int, pa.DataType]:
    """Position of a column, or of its group and in that, and its type."""
    position = schema.get_field_index(name)
    if position >= 0:
        return position, -1, schema.field(position).type
    home = find_group(schema, name)
    if home is None:
        raise DataError(f"column {name}: missing in the batch, which has {', '.join(feature_names(schema))}")
    position = schema.get_field_index(home)
    unique = schema.field(position).type.value_type
    inner = unique.get_field_index(name)
    return position, inner, unique.field(inner).type


def _check(name: str, given: pa.DataType, type_: pa.DataType, kind: Kind) -> tuple[int, int, int]:
    """Shape, element type and list size of a column."""
    shape = list_shape(type_)
    is_list = shape != 0
    element = element_type(type_.value_type if is_list else type_)
    if element is None or is_list != kind.is_list or (not kind.has_ids and element in (STRING32, STRING64)):
        raise DataError(f"column {name}: given Arrow type {given}, expected {kind.value}")
    if kind.has_ids and pa.types.is_floating(type_.value_type if is_list else type_):
        raise DataError(f"column {name}: given Arrow type {given}, expected {kind.value}: integers or strings")
    return shape, element, type_.list_size if pa.types.is_fixed_size_list(type_) else 0


def _readable(type_: pa.DataType, kind: Kind, unit: str | None) -> pa.DataType:
    """The type to convert a column to so that the kernels read it; often the type itself."""
    if pa.types.is_null(type_):  # what Arrow makes of a column, or of lists, without any value
        element = pa.int64() if kind.has_ids else pa.float64()
        return pa.large_list(element) if kind.is_list else element
    if pa.types.is_dictionary(type_):
        return _readable(type_.value_type, kind, unit)
    if list_shape(type_):
        element = _readable(type_.value_type, Kind.ID if kind.has_ids else Kind.NUMBER, unit)
        if element == type_.value_type:
            return type_
        return pa.large_list(element)
    if pa.types.is_float16(type_):
        return pa.float32()
    if pa.types.is_decimal(type_):
        return pa.float64()
    if pa.types.is_timestamp(type_) and unit is not None and type_.unit != unit:
        return pa.timestamp(unit, type_.tz)
    if pa.types.is_string_view(type_) or pa.types.is_fixed_size_binary(type_):
        return pa.large_string() if pa.types.is_string_view(type_) else pa.large_binary()
    return type_


def _convert(column: pa.Array, type_: pa.DataType) -> pa.Array:
    column = _decode(column)
    return column if column.type == type_ else pc.cast(column, type_, safe=False)


def _convert_in_group(column: pa.DictionaryArray, inner: int, type_: pa.DataType) -> pa.DictionaryArray:
    """A group column with one of its features converted; slices of a shared buffer become lists of their own."""
    unique, inverse = group_of(column)
    features = {name: unique.field(name) for name in (field.name for field in unique.type)}
    name = unique.type.field(inner).name
    values = features[name]
    if list_shape(values.type) in (VIEW32, VIEW64):
        values = gather(values, np.arange(len(values)))
    return group_array(features | {name: _convert(values, type_)}, inverse)


def _decode(column: pa.Array) -> pa.Array:
    """The column without dictionaries, also inside lists."""
    if pa.types.is_dictionary(column.type):
        return column.dictionary_decode()
    if list_shape(column.type) and pa.types.is_dictionary(column.type.value_type):
        offsets = pc.list_value_length(column).fill_null(0).cast(pa.int64())
        bounds = np.concatenate([[0], np.cumsum(offsets.to_numpy(zero_copy_only=False))])
        return pa.LargeListArray.from_arrays(pa.array(bounds), column.flatten().dictionary_decode())
    return column
