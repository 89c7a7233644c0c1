"""Checks of Parquet footers for consistency, before their contents are trusted."""

from __future__ import annotations

import base64
import hashlib
import io
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pt

from headrace.errors import DataError
from headrace.logs.gathering import is_list
from headrace.messages import shorten_list

__all__ = ["check_chunks", "check_codecs", "check_metadata", "check_schema", "is_sealed", "seal_footer"]

MAGIC = b"PAR1"

SEAL = b"headrace-seal-1\n"
"""Magic bytes before the footer of files written by headrace, followed by the footer's digest. Parquet readers locate
footers from the end of the file and data by offsets, so they ignore it. Unlike a value in the footer, the digest covers
the whole footer."""

DIGEST_BYTES = 16


def seal_footer(path: str | Path) -> None:
    """Insert a digest before a finished file's footer, and flush the file to disk."""
    with open(path, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(size - 8)
        length = int.from_bytes(file.read(4), "little")
        file.seek(size - 8 - length)
        footer = file.read(length)
        file.seek(size - 8 - length)
        file.write(SEAL + _digest(footer) + footer + length.to_bytes(4, "little") + MAGIC)
        file.flush()
        os.fsync(file.fileno())


def is_sealed(before: bytes, footer: bytes, *, where: str) -> bool:
    """Whether a footer has a valid digest.

    Args:
        before: Bytes before the footer, enough for `SEAL` and a digest if the file is long enough.
        footer: Bytes of the footer.
        where: Name of the file in error messages.

    Raises:
        DataError: The digest does not match the footer.
    """
    end = len(before) - DIGEST_BYTES
    if before[max(end - len(SEAL), 0) : end] != SEAL:
        return False
    was, now = before[end:].hex(), _digest(footer).hex()
    if was != now:
        raise DataError(f"{where}: its Parquet footer is damaged: its digest is {now}, expected {was}")
    return True


def check_metadata(metadata: pq.FileMetaData, footer_start: int, *, where: str) -> None:
    """Check the numbers in a footer: row counts add up, and column chunks do not overlap.

    Args:
        metadata: The parsed footer.
        footer_start: Offset of the footer in the file.
        where: Name of the file in error messages.

    Raises:
        DataError: The footer is inconsistent; the message names the first contradiction.
    """
    num_rows = 0
    spans = []
    is_flat = [metadata.schema.column(leaf).max_repetition_level == 0 for leaf in range(metadata.num_columns)]
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        num_rows += group.num_rows
        if group.num_rows < 0 or group.num_columns != metadata.num_columns:
            raise _damaged(
                f"{where}, row group {number}",
                f"{group.num_rows} rows and {group.num_columns} columns, the schema has {metadata.num_columns}",
            )
        for leaf in range(metadata.num_columns):
            chunk = group.column(leaf)
            span = _span(chunk, group.num_rows, is_flat[leaf], f"{where}, row group {number}")
            if group.num_rows:  # writers set the offsets of empty row groups to 0
                spans.append(span)
    if num_rows != metadata.num_rows:
        raise _damaged(where, f"its row groups have {num_rows} rows, the file {metadata.num_rows}")
    _check_spans(np.array(spans, dtype=np.int64).reshape(-1, 2), footer_start, where)
    if metadata.num_row_groups:
        _check_names(metadata, where)


def check_schema(metadata: pq.FileMetaData, *, where: str) -> None:
    """Check the Parquet schema of a file against its stored Arrow schema, if there is one.

    Raises:
        DataError: A column differs; the message names it.
    """
    text = (metadata.metadata or {}).get(b"ARROW:schema")
    if text is None:
        return
    try:
        said = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text, validate=True)))
        found = metadata.schema.to_arrow_schema()
    except (ValueError, OSError, pa.ArrowException) as error:
        raise _damaged(where, f"its Arrow schema cannot be read: {error}") from error
    if said.names != found.names:
        differ = sorted(set(said.names) ^ set(found.names)) or ["their order"]
        raise _damaged(where, f"its columns differ between its two schemas: {shorten_list(differ)}")
    columns = (metadata.schema.column(leaf) for leaf in range(metadata.num_columns))
    int96 = {column.path for column in columns if column.physical_type == "INT96"}
    for one, other in zip(said, found, strict=True):
        is_finer = _is_in_ns(other.type) and not _is_in_ns(one.type) and one.name not in int96
        if one.nullable != other.nullable or _kind(one.type) != _kind(other.type) or is_finer:
            raise _damaged(where, f"column {one.name} is {one} in one of its two schemas, {other} in the other")


def _span(chunk: pq.ColumnChunkMetaData, num_rows: int, is_flat: bool, where: str) -> tuple[int, int]:
    """Start and size in bytes of a column chunk."""
    values, size, data = chunk.num_values, chunk.total_compressed_size, chunk.data_page_offset
    if values != num_rows if is_flat else values < num_rows:
        raise _damaged(where, f"column {chunk.path_in_schema} has {values} values, the row group {num_rows} rows")
    dictionary = chunk.dictionary_page_offset if chunk.has_dictionary_page else None
    start = data if not dictionary or dictionary < 0 else min(data, dictionary)
    if size < 0 or (values and not start <= data < start + size):
        raise _damaged(where, f"column {chunk.path_in_schema} lies at {start}, {size} bytes, its data at {data}")
    return start, size


class _NoData(io.RawIOBase):
    """A file without data."""

    MESSAGE = "checking a footer reads no data"

    def __init__(self, size: int) -> None:
        self._size, self._position = size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        raise OSError(self.MESSAGE)


def check_chunks(metadata: pq.FileMetaData, size: int, *, where: str) -> None:
    """Make Arrow validate the metadata of each column chunk.

    Accessing a chunk from Python aborts the process if its metadata contradicts the schema, but reading row groups
    raises an error. So this reads all row groups from a file without data, which stops after the metadata.

    Args:
        metadata: The parsed footer.
        size: Size of the file in bytes.
        where: Name of the file in error messages.

    Raises:
        DataError: Arrow rejects a chunk.
    """
    if not metadata.num_row_groups or not metadata.num_columns:
        return
    try:
        parquet = pq.ParquetFile(pa.PythonFile(_NoData(size), mode="r"), metadata=metadata, pre_buffer=True)
        parquet.read_row_groups(range(metadata.num_row_groups), use_threads=False)
    except (OSError, pa.ArrowException) as error:
        if _NoData.MESSAGE not in str(error):
            raise _damaged(where, " ".join(str(error).split())) from error
        # Arrow never frees the error of a file in Python. Its traceback would keep the frames of all callers, and what
        # they refer to, such as a whole run with its tables.
        error.__traceback__ = None


def check_codecs(metadata: pq.FileMetaData, row_group: int, leaves: Iterable[int], *, where: str) -> None:
    """Check that the sizes of uncompressed columns are equal.

    Otherwise a decoder would interpret compressed bytes as values. Use this only for columns that were decoded, because
    Arrow aborts the process when asked for the name of an unknown codec.

    Raises:
        DataError: The sizes differ; the message names the column.
    """
    group = metadata.row_group(row_group)
    for leaf in leaves:
        chunk = group.column(leaf)
        if chunk.total_compressed_size != chunk.total_uncompressed_size and chunk.compression == "UNCOMPRESSED":
            place = f"{where}, row group {row_group}"
            raise _damaged(place, f"column {chunk.path_in_schema} is not compressed, but its sizes differ")


def _check_spans(spans: np.ndarray[tuple[int, ...], np.dtype[np.int64]], footer_start: int, where: str) -> None:
    spans = spans[spans[:, 1] > 0]
    spans = spans[np.argsort(spans[:, 0])]
    starts, stops = spans[:, 0], spans[:, 0] + spans[:, 1]
    if len(spans) and (starts[0] < len(MAGIC) or (stops > footer_start).any()):
        raise _damaged(where, f"column chunks lie at {starts[0]} to {stops.max()}, the data at 4 to {footer_start}")
    overlap = np.flatnonzero(stops[:-1] > starts[1:])
    if len(overlap):
        raise _damaged(where, f"two column chunks overlap at {starts[overlap[0] + 1]}")


def _check_names(metadata: pq.FileMetaData, where: str) -> None:
    """Check that names and physical types in the schema match those in the column chunks."""
    group = metadata.row_group(0)
    for leaf in range(metadata.num_columns):
        chunk, column = group.column(leaf), metadata.schema.column(leaf)
        one, other = (chunk.path_in_schema, chunk.physical_type), (column.path, column.physical_type)
        if one != other:
            raise _damaged(where, f"a column is {other[0]} ({other[1]}) in its schema, {one[0]} ({one[1]}) in its data")


def _is_in_ns(kind: pa.DataType) -> bool:
    """Whether a type is a time in nanoseconds, which writers may convert to a coarser unit (never the reverse)."""
    return bool(pt.is_timestamp(kind) and kind.unit == "ns")


def _kind(kind: pa.DataType) -> object:
    """The kind on which both schemas must agree, because writers may normalise forms of lists, texts and times."""
    if isinstance(kind, pa.BaseExtensionType):
        return _kind(kind.storage_type)
    if pt.is_dictionary(kind):
        return _kind(kind.value_type)
    if pt.is_struct(kind):
        return tuple((field.name, _kind(field.type)) for field in kind)
    if is_list(kind) or pt.is_fixed_size_list(kind):
        return [_kind(kind.value_type)]
    for name, belongs in _FAMILIES.items():
        if belongs(kind):
            return name
    if pt.is_decimal(kind):
        return ("decimal", kind.precision, kind.scale)
    return kind if pt.is_primitive(kind) else "other"


_FAMILIES: dict[str, Callable[[pa.DataType], bool]] = {
    "text": lambda kind: pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind),
    "bytes": lambda kind: pt.is_binary(kind) or pt.is_large_binary(kind) or pt.is_binary_view(kind),
    "timestamp": pt.is_timestamp,
    "date": pt.is_date,
    "time": pt.is_time,
    "int64": lambda kind: pt.is_duration(kind) or pt.is_int64(kind),
}


def _damaged(where: str, what: str) -> DataError:
    return DataError(f"{where}: its Parquet footer is damaged: {' '.join(what.split())}")


def _digest(footer: bytes) -> bytes:
    return hashlib.blake2b(footer, digest_size=DIGEST_BYTES).digest()
