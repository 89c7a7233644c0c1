"""Group columns of record batches: features that repeat together, stored as unique rows and an inverse lookup.

A group column is called `__group_<number>` and is a dictionary array over structs::

    __group_0: dictionary<int32, struct<age: float, history: list_view<int64>>>

        dictionary (unique rows)     indices (one per row)
        0: {age: 31, history: [5, 6, 7]}         [0, 0, 0, 1, 1]
        1: {age: 31, history: [6, 7, 8]}

Arrow's dictionary array *is* unique rows plus `inverse_lookup` (RecD, MLSys 2023, section 4). Taking, filtering and
slicing rows touches only four bytes per row, and `expand` converts to plain columns. Lists that only shift are a
`list_view`: overlapping slices of one buffer (here [5, 6, 7, 8]). Indices and structs are never null; features may be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as pt

from headrace.compiling import kernel
from headrace.logs.gathering import expanded_type, gather, is_list, is_list_view, list_parts

__all__ = [
    "GROUP_PREFIX",
    "Group",
    "compact",
    "concat",
    "expand",
    "expanded_schema",
    "feature_names",
    "find_group",
    "group_array",
    "group_name",
    "group_of",
    "has_groups",
    "is_group",
    "num_bytes",
]

GROUP_PREFIX = "__group_"
"""Prefix of group column names, reserved in logs."""

Inverse = npt.NDArray[np.int32]


class Group(NamedTuple):
    """The contents of a group column.

    Attributes:
        unique: Struct array of the unique rows; see `feature`.
        inverse: int32 [rows], the unique row of each row.
    """

    unique: pa.StructArray
    inverse: Inverse

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features in the group."""
        return tuple(field.name for field in self.unique.type)

    def feature(self, name: str) -> pa.Array:
        """Values of a feature in the unique rows; lists may be a `list_view`."""
        return self.unique.field(name)


def is_group(name: str) -> bool:
    """Whether this is the name of a group column."""
    return name.startswith(GROUP_PREFIX)


def group_name(number: int) -> str:
    """Name of group column `number`."""
    return f"{GROUP_PREFIX}{number}"


def has_groups(schema: pa.Schema) -> bool:
    """Whether a schema has group columns."""
    return any(is_group(name) for name in schema.names)


def find_group(schema: pa.Schema, feature: str) -> str | None:
    """Name of the group column that contains a feature, or None if it is a plain column or missing."""
    for field in schema:
        if is_group(field.name) and field.type.value_type.get_field_index(feature) >= 0:
            return str(field.name)
    return None


def feature_names(schema: pa.Schema) -> tuple[str, ...]:
    """Names of the columns after `expand`: features replace their group column."""
    return tuple(expanded_schema(schema).names)


def expanded_schema(schema: pa.Schema) -> pa.Schema:
    """The schema after `expand`."""
    fields: list[pa.Field] = []
    for field in schema:
        if is_group(field.name):
            fields += [pa.field(inner.name, expanded_type(inner.type)) for inner in field.type.value_type]
        else:
            fields.append(field)
    return pa.schema(fields)


def group_array(features: Mapping[str, pa.Array], inverse: Inverse) -> pa.DictionaryArray:
    """Create a group column.

    Args:
        features: Values of each feature in the unique rows, all of equal length.
        inverse: int32 [rows], the unique row of each row; not checked.
    """
    unique = pa.StructArray.from_arrays(list(features.values()), names=list(features))
    return pa.DictionaryArray.from_arrays(pa.array(inverse, pa.int32()), unique, safe=False)


def group_of(column: pa.DictionaryArray) -> Group:
    """The contents of a group column, without a copy."""
    return Group(column.dictionary, column.indices.to_numpy(zero_copy_only=True))


def expand(batch: pa.RecordBatch, columns: Sequence[str] | None = None) -> pa.RecordBatch:
    """Expand a batch to plain rows; returns the batch itself if it has no groups and all columns are requested.

    Args:
        batch: Rows with or without group columns.
        columns: Names of plain columns and features, in order; None for all in their current order.

    Raises:
        KeyError: A column is neither in the batch nor in one of its groups.
    """
    if columns is None:
        if not has_groups(batch.schema):
            return batch
        columns = feature_names(batch.schema)
    places = {name: index for index, name in enumerate(batch.schema.names)}
    groups = {name: group_of(batch.column(index)) for name, index in places.items() if is_group(name)}
    homes = {feature: group for group in groups.values() for feature in group.features}
    arrays, fields = [], []
    for name in columns:
        if name in places:
            arrays.append(batch.column(places[name]))
            fields.append(batch.schema.field(places[name]))
            continue
        group = homes[name]
        values = gather(group.feature(name), group.inverse)
        arrays.append(values)
        fields.append(pa.field(name, values.type))
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def concat(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Concatenate batches of the same schema.

    Arrow cannot unify dictionaries of structs, so dictionaries are concatenated and indices shifted; dictionaries that
    are the same memory (slices of one batch) are used once. Call `compact` afterwards if only a few rows of each batch
    are left.
    """
    if len(batches) == 1:
        return batches[0]
    schema = batches[0].schema
    if not has_groups(schema):
        return pa.concat_batches(batches)
    arrays = [
        _concat_groups([batch.column(i) for batch in batches])
        if is_group(name)
        else pa.concat_arrays([batch.column(i) for batch in batches])
        for i, name in enumerate(schema.names)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def compact(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Remove unused unique rows and unused elements of shared buffers.

    Unique rows are ordered by first use. A group whose unique rows are all used in that order is unchanged.
    """
    if not has_groups(batch.schema):
        return batch
    arrays = [
        _compact_group(column) if is_group(name) else column
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=batch.schema)


def num_bytes(batch: pa.RecordBatch) -> int:
    """Bytes of the rows of a batch, counting only used unique rows of dictionaries; see `compact`."""
    total = 0
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if not is_group(name):
            total += int(column.nbytes)
            continue
        group = group_of(column)
        used, _ = _used_rows(group)
        total += group.inverse.nbytes + sum(_bytes_of(group.feature(feature), used) for feature in group.features)
    return total


def _concat_groups(columns: Sequence[pa.DictionaryArray]) -> pa.DictionaryArray:
    starts: dict[tuple[object, ...], int] = {}
    dictionaries: list[pa.StructArray] = []
    indices: list[Inverse] = []
    length = 0
    for column in columns:
        unique, inverse = group_of(column)
        identity = _identity(unique)
        if identity not in starts:
            starts[identity] = length
            length += len(unique)
            dictionaries.append(unique)
        indices.append(inverse + np.int32(starts[identity]) if starts[identity] else inverse)
    unique = dictionaries[0] if len(dictionaries) == 1 else pa.concat_arrays(dictionaries)
    return pa.DictionaryArray.from_arrays(pa.array(np.concatenate(indices)), unique, safe=False)


def _identity(unique: pa.StructArray) -> tuple[object, ...]:
    """A key that is equal for two live arrays only if they are the same memory."""
    addresses = [None if buffer is None else (buffer.address, buffer.size) for buffer in unique.buffers()]
    return (unique.offset, len(unique), *addresses)


def _compact_group(column: pa.DictionaryArray) -> pa.DictionaryArray:
    group = group_of(column)
    used, inverse = _used_rows(group)
    if len(used) == len(group.unique) and np.array_equal(inverse, group.inverse):
        return column
    arrays = {}
    for name in group.features:
        values = group.feature(name)
        if is_list_view(values.type):
            arrays[name] = _compact_views(values, used)
        else:
            taken = gather(values, used)
            arrays[name] = taken if taken.type.equals(values.type) else taken.cast(values.type)
    return group_array(arrays, inverse)


def _used_rows(group: Group) -> tuple[Inverse, Inverse]:
    """Used unique rows in order of first use, and indices into them."""
    used = np.empty(min(len(group.unique), len(group.inverse)), dtype=np.int32)
    inverse = np.empty(len(group.inverse), dtype=np.int32)
    count = _find_used(group.inverse, len(group.unique), used, inverse)
    return used[:count], inverse


def _compact_views(views: pa.Array, used: Inverse) -> pa.Array:
    """The used rows of a list view, over a buffer of only their elements."""
    starts, lengths, values, valid = list_parts(views)
    spans = _spans(starts[used].astype(np.int64), lengths[used].astype(np.int64))
    kept = pa.LargeListViewArray.from_arrays(spans.first, spans.lengths, values)
    elements = gather(kept, np.arange(len(spans.first))).values
    size = np.int64 if pt.is_large_list_view(views.type) else np.int32
    mask = None if valid is None else pa.array(~valid[used])
    make = pa.LargeListViewArray if size is np.int64 else pa.ListViewArray
    return make.from_arrays(
        pa.array(spans.starts.astype(size)), pa.array(lengths[used].astype(size)), elements, type=views.type, mask=mask
    )


class _Spans(NamedTuple):
    """Ranges of a buffer that slices cover: `first` and `lengths` of each, and the start of each slice in them."""

    first: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]


def _spans(starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> _Spans:
    in_order = len(starts) < 2 or bool((np.diff(starts) >= 0).all())
    order = np.arange(len(starts)) if in_order else np.argsort(starts, kind="stable")
    first, span_lengths, moved = (np.empty(len(starts), dtype=np.int64) for _ in range(3))
    count = _merge_spans(starts, lengths, order, first, span_lengths, moved)
    return _Spans(first[:count], span_lengths[:count], moved)


def _bytes_of(values: pa.Array, rows: Inverse) -> int:
    """Bytes of some rows of an array; for views, of the elements that they cover."""
    kind = values.type
    if is_list(kind):
        starts, lengths, elements, _ = list_parts(values)
        if is_list_view(kind):
            spans = _spans(starts[rows].astype(np.int64), lengths[rows].astype(np.int64))
            num_elements, per_row = int(spans.lengths.sum()), 2 * starts.dtype.itemsize
        else:
            num_elements, per_row = int(lengths[rows].sum()), starts.dtype.itemsize
        width = elements.nbytes / len(elements) if len(elements) else 0.0
        return int(num_elements * width) + per_row * len(rows)
    return int(values.nbytes * len(rows) / len(values)) if len(values) else 0


@kernel()
def _find_used(indices: Inverse, num_unique: int, used: Inverse, inverse: Inverse) -> int:
    new = np.full(num_unique, -1, np.int32)
    count = 0
    for i in range(len(indices)):
        old = indices[i]
        if new[old] < 0:
            new[old] = count
            used[count] = old
            count += 1
        inverse[i] = new[old]
    return count


@kernel()
def _merge_spans(
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    order: npt.NDArray[np.int64],
    first: npt.NDArray[np.int64],
    span_lengths: npt.NDArray[np.int64],
    moved: npt.NDArray[np.int64],
) -> int:
    """Merge slices, in order of their starts, into ranges; empty slices are ignored."""
    count = 0
    kept = 0  # elements of the ranges before the current one
    for i in order:
        start, stop = starts[i], starts[i] + lengths[i]
        if lengths[i] == 0:
            moved[i] = 0
            continue
        if count == 0 or start > first[count - 1] + span_lengths[count - 1]:
            if count > 0:
                kept += span_lengths[count - 1]
            first[count] = start
            span_lengths[count] = 0
            count += 1
        span_lengths[count - 1] = max(span_lengths[count - 1], stop - first[count - 1])
        moved[i] = kept + start - first[count - 1]
    return count
