"""Chooses the Parquet encoding of each leaf column by encoding a sample with every widely supported encoding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pt

from headrace.logs.gathering import is_list

__all__ = ["COMPRESSION", "choose_encodings", "fitting_encodings", "leaf_values", "writer_options"]

COMPRESSION = "zstd"

DICTIONARY = "DICTIONARY"

SLACK = 1.02
"""Minimum savings over an earlier one of `_candidates`, which decodes faster."""

MAX_VALUES = 1 << 20


def choose_encodings(sample: pa.RecordBatch) -> dict[str, str]:
    """Choose the encoding with the smallest compressed size for each leaf column.

    Args:
        sample: Rows of about one row group of the file.

    Returns:
        Encoding names by leaf path, for `writer_options`.
    """
    return fitting_encodings({}, sample)


def fitting_encodings(known: Mapping[str, str], sample: pa.RecordBatch) -> dict[str, str]:
    """Reuse previously chosen encodings that suit the column types, and choose the others.

    Args:
        known: Encoding names by leaf path.
        sample: See `choose_encodings`.
    """
    chosen: dict[str, str] = {}
    for path, values in leaf_values(sample):
        candidates = _candidates(values.type)
        if path in chosen:  # a dot in a name can give two leaves the same path; this encoding suits any type
            chosen[path] = DICTIONARY
        elif known.get(path) in candidates:
            chosen[path] = known[path]
        else:
            sizes = {name: _written_bytes(values, name) for name in candidates} if len(candidates) > 1 else {}
            smallest = min(sizes.values(), default=0)
            chosen[path] = next((name for name, size in sizes.items() if size <= smallest * SLACK), candidates[0])
    return chosen


def writer_options(encodings: Mapping[str, str]) -> dict[str, Any]:
    """Arguments of `pyarrow.parquet.ParquetWriter` for the encodings and the standard compression."""
    return {
        "compression": COMPRESSION,
        "use_dictionary": [path for path, name in encodings.items() if name == DICTIONARY],
        "column_encoding": {path: name for path, name in encodings.items() if name != DICTIONARY},
        "write_page_checksum": True,
    }


def leaf_values(batch: pa.RecordBatch) -> Iterator[tuple[str, pa.Array]]:
    """Yield the path and values of each Parquet leaf column of a batch."""
    for field, column in zip(batch.schema, batch.columns, strict=True):
        yield from _leaves(field.name, column)


def _leaves(path: str, array: pa.Array) -> Iterator[tuple[str, pa.Array]]:
    if is_list(array.type) or pt.is_fixed_size_list(array.type):
        yield from _leaves(f"{path}.list.element", array.flatten())
    elif pt.is_struct(array.type):
        for field, child in zip(array.type, array.flatten(), strict=True):
            yield from _leaves(f"{path}.{field.name}", child)
    elif pt.is_map(array.type):
        yield f"{path}.key_value.key", array.keys
        yield from _leaves(f"{path}.key_value.value", array.items)
    else:
        yield path, array


def _candidates(kind: pa.DataType) -> tuple[str, ...]:
    """Encodings of a type, fastest to decode first."""
    if pt.is_boolean(kind) or pt.is_null(kind):
        return ("PLAIN",)
    if pt.is_integer(kind) or pt.is_timestamp(kind) or pt.is_date(kind) or pt.is_time(kind):
        return ("BYTE_STREAM_SPLIT", "PLAIN", DICTIONARY, "DELTA_BINARY_PACKED")
    if pt.is_float32(kind) or pt.is_float64(kind):
        return ("BYTE_STREAM_SPLIT", "PLAIN", DICTIONARY)
    if pt.is_string(kind) or pt.is_large_string(kind) or pt.is_binary(kind) or pt.is_large_binary(kind):
        return ("PLAIN", DICTIONARY, "DELTA_LENGTH_BYTE_ARRAY")
    return (DICTIONARY,)


def _written_bytes(values: pa.Array, name: str) -> int:
    sink = pa.BufferOutputStream()
    table = pa.table({"x": values.slice(0, MAX_VALUES)})
    options = writer_options({"x": name})
    with pq.ParquetWriter(sink, table.schema, store_schema=False, **options) as writer:
        writer.write_table(table)
    chunk = pq.ParquetFile(pa.BufferReader(sink.getvalue())).metadata.row_group(0).column(0)
    return int(chunk.total_compressed_size)
