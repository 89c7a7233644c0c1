"""Reads and checks Parquet footers of log files, and reports damage with its location."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pt

from headrace.errors import DataError
from headrace.logs.casting import cast_times, to_time_us
from headrace.logs.file_kinds import HEAD_BYTES, describe_error, describe_file
from headrace.logs.files import LogFile, open_log_file
from headrace.logs.footer_checks import check_chunks, check_codecs, check_metadata, check_schema, is_sealed
from headrace.logs.nested.decode import NestedRows, leaf_paths
from headrace.logs.nested.layout import SOURCES_KEY, Layout, plain_schema
from headrace.logs.schema import TimestampColumn
from headrace.messages import one_line, shorten_list

__all__ = [
    "Footer",
    "iter_groups",
    "iter_nested",
    "iter_plain",
    "open_parquet",
    "read_footer",
    "time_bounds",
]

BUFFER_BYTES = 256 << 10
"""Read buffer per column; column chunks are never read into memory as a whole."""

ALL_BUFFERS_BYTES = 64 << 20
"""Approximate total of the read buffers of all columns."""

MAGIC = b"PAR1"

MAX_CHECKED = 10_000  # footers
SAMPLE_BYTES = 16 << 10
"""Size of each data sample in a fingerprint; small files are covered completely."""

INT96_UNIT = "us"
"""Unit for reading old INT96 timestamps (Spark, Impala, Hive). In nanoseconds, Arrow's default, the year 9999 silently
becomes 1816. If the schema's unit is nanoseconds, times that do not fit become bad rows."""


@dataclass(frozen=True, eq=False)
class Footer:
    """The footer of a Parquet log file.

    Attributes:
        file: The file.
        metadata: Row groups, column chunks and statistics.
        schema: Arrow types of the log's columns; for a nested file, of the columns inside its sessions. Columns with
            duplicate names are omitted, because they cannot be selected.
        fingerprint: Digest of the footer's bytes and of data samples from the middle and the end, because files with
            different rows may have equal schemas, sizes and statistics.
        layout: Layout of a clustered log; None for others.
        row_bytes_on_disk: For a clustered log, compressed bytes per row of each column in the original log. Empty for
            others, and for files of earlier versions.
        is_sealed: Whether the footer has a valid digest, as in files written by headrace, so that its statistics can be
            trusted.
        repeated: Names of more than one column.
    """

    file: LogFile
    metadata: pq.FileMetaData
    schema: pa.Schema
    fingerprint: str
    layout: Layout | None = None
    row_bytes_on_disk: Mapping[str, float] = field(default_factory=dict)
    is_sealed: bool = False
    repeated: tuple[str, ...] = ()

    @property
    def is_nested(self) -> bool:
        """Whether a row of the file is a session, whose impressions are the rows of the log."""
        return self.layout is not None and self.layout.kind == "nested"

    @cached_property
    def num_rows(self) -> int:
        """Number of log rows in the file."""
        return sum(self.group_rows(number) for number in range(self.metadata.num_row_groups))

    def group_rows(self, row_group: int) -> int:
        """Number of log rows in a row group."""
        group = self.metadata.row_group(row_group)
        if not self.is_nested:
            return int(group.num_rows)
        # Every session has impressions, so the footer's value count of any of their columns is the number of rows.
        return int(group.column(self._impression_leaf).num_values)

    def compressed_bytes(self, row_groups: Iterable[int]) -> dict[str, int]:
        """Compressed bytes of each log column in some row groups."""
        groups = [self.metadata.row_group(row_group) for row_group in row_groups]
        return {
            name: sum(int(group.column(leaf).total_compressed_size) for group in groups for leaf in leaves)
            for name, leaves in self.leaves.items()
        }

    def has_column(self, name: str) -> bool:
        """Whether a column is in the file or in its partition folders."""
        return name in self._types or any(key == name for key, _ in self.file.partition)

    def check_columns(self, names: Sequence[str], *, in_folders: bool = True) -> None:
        """Check that the columns are in the file or (with `in_folders`) in its partition folders.

        Raises:
            DataError: Columns are missing or have duplicate names; the message names them.
        """
        for name in self.repeated:
            if name in names:
                raise DataError(f"{self.file.path}: more than one column is named {one_line(name)}; rename the others")
        there = [*self.schema.names, *(key for key, _ in self.file.partition if in_folders)]
        missing = [name for name in names if name not in there]
        if missing:
            raise DataError(f"{self.file.path}: no column {shorten_list(missing)}; the file has {shorten_list(there)}")

    def stored_type(self, name: str) -> pa.DataType:
        """Stored type of a column; partition columns are strings."""
        return self._types.get(name, pa.string())

    @cached_property
    def _types(self) -> dict[str, pa.DataType]:
        return {field.name: field.type for field in self.schema}

    @cached_property
    def leaves(self) -> dict[str, list[int]]:
        """For each column, the indices of its column chunks within a row group."""
        leaves: dict[str, list[int]] = {}
        if self.is_nested:
            assert self.layout is not None
            paths = [self.metadata.schema.column(number).path for number in range(self.metadata.num_columns)]
            below: dict[str, list[int]] = {}
            for number, path in enumerate(paths):
                for end in (index for index, letter in enumerate(f"{path}.") if letter == "."):
                    below.setdefault(path[:end], []).append(number)
            for name in self.schema.names:
                prefixes = leaf_paths(self.layout, [name], always_impressions=False)
                leaves[name] = [number for prefix in prefixes for number in below.get(prefix, ())]
            return leaves
        # By position, because names may contain dots or be duplicated.
        first = 0
        for column in self.metadata.schema.to_arrow_schema():
            count = _num_leaves(column.type)
            if column.name not in self.repeated:
                leaves[column.name] = list(range(first, first + count))
            first += count
        return leaves

    @cached_property
    def _impression_leaf(self) -> int:
        layout = self.layout
        assert layout is not None
        before = takewhile(lambda field: field.name != layout.impressions, self.metadata.schema.to_arrow_schema())
        first = sum(_num_leaves(field.type) for field in before)
        leaves = range(first, self.metadata.num_columns)
        # Not a leaf inside another list, whose elements would be counted.
        return next(n for n in leaves if self.metadata.schema.column(n).max_repetition_level == 1)


_checked: set[tuple[bytes, int]] = set()
"""Hashes of footers that passed the checks, with the sizes of their files: a job reads each footer several times."""


def read_footer(file: LogFile) -> Footer:
    """Read and check the footer of a file.

    Raises:
        DataError: The file does not exist, is truncated, or is not Parquet.
    """
    with open_log_file(file.path) as handle:
        size = handle.size()
        head = handle.read(HEAD_BYTES)
        handle.seek(max(size - 8, 0))
        tail = handle.read(8)
        length = int.from_bytes(tail[:4], "little")
        if size < 12 or tail[4:] != MAGIC or length > size - 12:
            raise DataError(f"{file.path}: {describe_file(head, tail[-4:], size)}")
        start = size - 8 - length
        handle.seek(max(start - SAMPLE_BYTES, 0))
        tail = handle.read(size - 8 - max(start - SAMPLE_BYTES, 0))
        before, raw = tail[: len(tail) - length], tail[len(tail) - length :]
        is_whole = is_sealed(before, raw, where=file.path)
        handle.seek(max(start - SAMPLE_BYTES, 0) // 2)
        fingerprint = hashlib.blake2b(tail + handle.read(SAMPLE_BYTES), digest_size=12).hexdigest()
        try:
            parquet = pq.ParquetFile(handle, pre_buffer=False, coerce_int96_timestamp_unit=INT96_UNIT)
            checked = hashlib.blake2b(raw, digest_size=16).digest(), size
            if not is_whole and checked not in _checked:
                check_chunks(parquet.metadata, size, where=file.path)
                check_metadata(parquet.metadata, start, where=file.path)
                check_schema(parquet.metadata, where=file.path)
                if len(_checked) >= MAX_CHECKED:
                    _checked.clear()
                _checked.add(checked)
            schema = parquet.schema_arrow
            layout = Layout.from_metadata(schema.metadata, where=file.path)
            if layout is not None and layout.kind == "nested":
                schema = plain_schema(schema, layout)
            disk = _row_bytes_on_disk(parquet.metadata)
            repeated = tuple(name for name, count in Counter(schema.names).items() if count > 1)
            if repeated:
                schema = pa.schema([field for field in schema if field.name not in repeated])
        except (OSError, pa.ArrowException, UnicodeDecodeError, LookupError, StopIteration) as error:
            raise DataError(f"{file.path}: its Parquet footer cannot be read: {_line(error)}") from error
        return Footer(file, parquet.metadata, schema, fingerprint, layout, disk, is_whole, repeated)


@contextmanager
def open_parquet(footer: Footer, *, num_columns: int = 1) -> Iterator[pq.ParquetFile]:
    """Open a file for reading row groups with little memory, reusing its footer.

    Args:
        footer: Footer of the file.
        num_columns: Number of columns to read at once; with more than 256, each has a smaller buffer.
    """
    with open_log_file(footer.file.path) as handle:
        with _reading(footer.file.path):
            parquet = pq.ParquetFile(
                handle,
                metadata=footer.metadata,
                pre_buffer=False,
                buffer_size=max(16 << 10, min(BUFFER_BYTES, ALL_BUFFERS_BYTES // num_columns)),
                page_checksum_verification=True,
                coerce_int96_timestamp_unit=INT96_UNIT,
            )
        yield parquet


def iter_plain(
    footer: Footer, parquet: pq.ParquetFile, row_group: int, names: list[str], batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """Yield columns of a row group as plain log rows, for any layout, in batches of about `batch_rows` rows.

    Raises:
        DataError: The row group cannot be decoded, or its number of rows differs from the footer.
    """
    if not footer.is_nested:
        leaves = [leaf for name in names for leaf in footer.leaves[name]]
        batches = parquet.reader.iter_batches(
            batch_rows, row_groups=[row_group], column_indices=leaves, use_threads=False
        )
        for place, batch in enumerate(_whole(batches, footer, row_group)):
            if place == 0 and not footer.is_sealed:
                check_codecs(footer.metadata, row_group, leaves, where=footer.file.path)
            yield batch
        return
    for rows in iter_nested(footer, parquet, row_group, names, batch_rows):
        yield rows.plain(names)


def iter_groups(
    footer: Footer, parquet: pq.ParquetFile, row_groups: Sequence[int], names: list[str], batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """Like `iter_plain`, for consecutive row groups; small ones are joined into batches."""
    if footer.is_nested or len(row_groups) == 1:
        for row_group in row_groups:
            yield from iter_plain(footer, parquet, row_group, names, batch_rows)
        return
    leaves = [leaf for name in names for leaf in footer.leaves[name]]
    expected = sum(footer.group_rows(row_group) for row_group in row_groups)
    decoded = 0
    batches = parquet.reader.iter_batches(
        batch_rows, row_groups=list(row_groups), column_indices=leaves, use_threads=False
    )
    for batch in _decoded(batches, footer, row_groups[0]):
        decoded += batch.num_rows
        yield batch
    if decoded != expected:
        raise _wrong_count(footer, row_groups[0], decoded, expected)
    if not footer.is_sealed:
        for row_group in row_groups:
            check_codecs(footer.metadata, row_group, leaves, where=footer.file.path)


def iter_nested(
    footer: Footer, parquet: pq.ParquetFile, row_group: int, names: list[str], batch_rows: int
) -> Iterator[NestedRows]:
    """Yield sessions of a row group of a nested file, in batches of about `batch_rows` impressions on average.

    The batch boundaries do not depend on the columns.
    """
    assert footer.layout is not None
    sessions, rows = footer.metadata.row_group(row_group).num_rows, footer.group_rows(row_group)
    batches = parquet.iter_batches(
        batch_size=max(1, sessions * batch_rows // max(rows, 1)),
        row_groups=[row_group],
        columns=leaf_paths(footer.layout, names),
        use_threads=False,
    )
    num_impressions = 0
    for batch in _whole(batches, footer, row_group):
        part = NestedRows(batch, footer.layout)
        num_impressions += part.num_rows
        yield part
    if num_impressions != rows:
        raise _wrong_count(footer, row_group, num_impressions, rows)


def _whole(batches: Iterator[pa.RecordBatch], footer: Footer, row_group: int) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a row group, and finally compare their rows with the footer's count."""
    decoded, expected = 0, footer.metadata.row_group(row_group).num_rows
    for batch in _decoded(batches, footer, row_group):
        decoded += batch.num_rows
        yield batch
    if decoded != expected:
        raise _wrong_count(footer, row_group, decoded, expected)


def _wrong_count(footer: Footer, row_group: int, decoded: int, expected: int) -> DataError:
    return DataError(
        f"{footer.file.path}, row group {row_group}: damaged: {decoded} rows were decoded, its footer says {expected}"
    )


def _decoded(batches: Iterator[pa.RecordBatch], footer: Footer, row_group: int) -> Iterator[pa.RecordBatch]:
    """Yield batches decoded by Arrow, adding the location to errors.

    Errors of code that uses the batches are not affected, only those raised by Arrow.
    """
    with _reading(f"{footer.file.path}, row group {row_group}"):
        yield from batches


@contextmanager
def _reading(place: str) -> Iterator[None]:
    try:
        yield
    except (DataError, MemoryError):
        raise
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{place}: {describe_error(error)}") from error


def time_bounds(footer: Footer, row_group: int, clock: TimestampColumn) -> tuple[int, int] | None:
    """First and last time in a row group, in microseconds; None if the footer does not have them, or rows have no time.

    Only footers with a digest are trusted, because a flipped bit in a statistic would silently move rows to another
    window.
    """
    if not footer.is_sealed or clock.name not in footer.schema.names:
        return None
    kind = footer.schema.field(clock.name).type
    chunk = footer.metadata.row_group(row_group).column(footer.leaves[clock.name][0])
    if not (pt.is_signed_integer(kind) or pt.is_timestamp(kind)) or chunk.physical_type not in ("INT32", "INT64"):
        return None
    statistics = chunk.statistics
    if statistics is None or not statistics.has_min_max or not statistics.has_null_count or statistics.null_count:
        return None
    raw = pa.array([statistics.min_raw, statistics.max_raw], pa.int64())
    ticks, _ = cast_times(raw.cast(kind) if pt.is_timestamp(kind) else raw, clock.unit)
    if ticks.null_count:  # out of range of the unit: such rows have no readable time
        return None
    first, last = to_time_us(ticks, clock.unit).tolist()
    return first, last


def _row_bytes_on_disk(metadata: pq.FileMetaData) -> dict[str, float]:
    text = (metadata.metadata or {}).get(SOURCES_KEY)
    try:
        values = {} if text is None else json.loads(text)["row_bytes_on_disk"]
        return {str(name): float(num_bytes) for name, num_bytes in values.items()}
    except (ValueError, TypeError, LookupError, AttributeError):
        return {}  # only needed for reports


def _num_leaves(kind: pa.DataType) -> int:
    """Number of column chunks of a column of a type."""
    if isinstance(kind, pa.BaseExtensionType):
        return _num_leaves(kind.storage_type)
    if pt.is_nested(kind):
        return sum(_num_leaves(kind.field(number).type) for number in range(kind.num_fields))
    return 1


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
