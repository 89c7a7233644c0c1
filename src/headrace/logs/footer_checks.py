"""What a Parquet footer says, checked against itself and against the file before any of it is trusted."""

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
"""Before the footer of a file that headrace wrote: these bytes, then the footer's digest. Parquet readers find footers
from the end of the file and data by offsets, so they pass over it; and unlike a value in the footer, it covers all."""

DIGEST_BYTES = 16


def seal_footer(path: str | Path) -> None:
    """Put a digest of a finished file's footer before it, and bring the file to disk."""
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
    """Whether a footer carries its digest.

    Args:
        before: The bytes before the footer, at least those of `SEAL` and a digest, if the file has so many.
        footer: Its bytes.
        where: Names the file in the error.

    Raises:
        DataError: The digest is that of another footer.
    """
    end = len(before) - DIGEST_BYTES
    if before[max(end - len(SEAL), 0) : end] != SEAL:
        return False
    was, now = before[end:].hex(), _digest(footer).hex()
    if was != now:
        raise DataError(f"{where}: its Parquet footer is damaged: its digest is {now}, {was} was written with it")
    return True


def check_metadata(metadata: pq.FileMetaData, footer_start: int, *, where: str) -> None:
    """Check the numbers of a footer: rows of row groups and columns add up, and column chunks lie apart in the file.

    Args:
        metadata: The footer, parsed.
        footer_start: Where it starts in the file.
        where: Names the file in the error.

    Raises:
        DataError: Names the first contradiction.
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
            if group.num_rows:  # writers leave the offsets of row groups without rows at 0
                spans.append(span)
    if num_rows != metadata.num_rows:
        raise _damaged(where, f"its row groups have {num_rows} rows, the file {metadata.num_rows}")
    _check_spans(np.array(spans, dtype=np.int64).reshape(-1, 2), footer_start, where)
    if metadata.num_row_groups:
        _check_names(metadata, where)


def check_schema(metadata: pq.FileMetaData, *, where: str) -> None:
    """Check the Parquet schema of a file against the Arrow schema that its writer put beside it, if there is one.

    Raises:
        DataError: Names a column that differs.
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
    """A file of which nothing can be read."""

    MESSAGE = "no data is read to check a footer"

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
    """Let Arrow look at each column chunk's metadata.

    Asked for a chunk by Python, it ends the process if the chunk's metadata contradicts the schema; when it reads row
    groups, it raises. So it is made to read all of them from a file without data, which ends after the metadata.

    Args:
        metadata: The footer, parsed.
        size: Of the file, in bytes.
        where: Names the file in the error.

    Raises:
        DataError: Arrow refuses a chunk.
    """
    if not metadata.num_row_groups or not metadata.num_columns:
        return
    try:
        parquet = pq.ParquetFile(pa.PythonFile(_NoData(size), mode="r"), metadata=metadata, pre_buffer=True)
        parquet.read_row_groups(range(metadata.num_row_groups), use_threads=False)
    except (OSError, pa.ArrowException) as error:
        if _NoData.MESSAGE not in str(error):
            raise _damaged(where, " ".join(str(error).split())) from error


def check_codecs(metadata: pq.FileMetaData, row_group: int, leaves: Iterable[int], *, where: str) -> None:
    """Check that columns without compression are as large as their pages.

    A decoder that is told so would take compressed bytes for values. Ask only for columns that were decoded: Arrow ends
    the process when it is asked for the name of a codec that it does not know.

    Raises:
        DataError: Names the column.
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
    """Names and physical types are in the schema and once more in each column chunk."""
    group = metadata.row_group(0)
    for leaf in range(metadata.num_columns):
        chunk, column = group.column(leaf), metadata.schema.column(leaf)
        one, other = (chunk.path_in_schema, chunk.physical_type), (column.path, column.physical_type)
        if one != other:
            raise _damaged(where, f"a column is {other[0]} ({other[1]}) in its schema, {one[0]} ({one[1]}) in its data")


def _is_in_ns(kind: pa.DataType) -> bool:
    """Whether a type is of times in nanoseconds, which writers make coarser, but never other times finer to."""
    return bool(pt.is_timestamp(kind) and kind.unit == "ns")


def _kind(kind: pa.DataType) -> object:
    """What both schemas must agree on: writers may store lists, texts and times of several forms in one."""
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
