"""Chooses the Parquet encoding of each leaf column by writing a sample of it in every way that readers know."""

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
"""An encoding is passed over for an earlier one of `_candidates` unless it saves this much: those decode faster."""

MAX_VALUES = 1 << 20


def choose_encodings(sample: pa.RecordBatch) -> dict[str, str]:
    """The encoding that makes each leaf column smallest once compressed.

    Args:
        sample: About a row group of the file to be written.

    Returns:
        Name of the encoding by the leaf's path; for `writer_options`.
    """
    return fitting_encodings({}, sample)


def fitting_encodings(known: Mapping[str, str], sample: pa.RecordBatch) -> dict[str, str]:
    """Encodings that were chosen before, where the types of the columns still take them; others are chosen.

    Args:
        known: Name of the encoding by the leaf's path.
        sample: See `choose_encodings`.
    """
    chosen: dict[str, str] = {}
    for path, values in leaf_values(sample):
        candidates = _candidates(values.type)
        if path in chosen:  # a dot in a name: two leaves are written as one path, and any type takes this
            chosen[path] = DICTIONARY
        elif known.get(path) in candidates:
            chosen[path] = known[path]
        else:
            sizes = {name: _written_bytes(values, name) for name in candidates} if len(candidates) > 1 else {}
            smallest = min(sizes.values(), default=0)
            chosen[path] = next((name for name, size in sizes.items() if size <= smallest * SLACK), candidates[0])
    return chosen


def writer_options(encodings: Mapping[str, str]) -> dict[str, Any]:
    """Arguments of `pyarrow.parquet.ParquetWriter` that use the encodings, and the compression of every log."""
    return {
        "compression": COMPRESSION,
        "use_dictionary": [path for path, name in encodings.items() if name == DICTIONARY],
        "column_encoding": {path: name for path, name in encodings.items() if name != DICTIONARY},
        "write_page_checksum": True,
    }


def leaf_values(batch: pa.RecordBatch) -> Iterator[tuple[str, pa.Array]]:
    """Path and values of each leaf column that Parquet makes of a batch."""
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
    """Encodings of a type, those that decode fastest first."""
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
