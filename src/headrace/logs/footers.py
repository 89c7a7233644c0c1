"""Parquet footers of log files: read once, checked, and damage reported with its place."""

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
"""Bytes read ahead of each column; whole column chunks are never read into memory at once."""

ALL_BUFFERS_BYTES = 64 << 20
"""Of all columns read at once, about."""

MAGIC = b"PAR1"

SAMPLE_BYTES = 16 << 10
"""Of each sample of data in a fingerprint; small files are covered whole."""

INT96_UNIT = "us"
"""What timestamps of the old kind INT96 (Spark, Impala, Hive) are read as: in nanoseconds, which is what Arrow takes by
default, the year 9999 silently becomes 1816. What a schema that asks for nanoseconds cannot hold is a bad row then."""


@dataclass(frozen=True, eq=False)
class Footer:
    """What a Parquet file says about itself.

    Attributes:
        file: The file.
        metadata: Row groups, column chunks and statistics.
        schema: Arrow types of the columns of the log; of a nested file, those that its sessions hold. Columns that
            share their name with another one are left out: they cannot be asked for.
        fingerprint: Digest of the footer's bytes and of samples of the data, from its middle and its end: footers of
            equal schemas, sizes and statistics may belong to different rows.
        layout: Of a clustered log; None for others.
        row_bytes_on_disk: Of a clustered log: compressed bytes a row of each column in the log it was made of. Empty
            for others, and where an earlier version clustered it.
        is_sealed: Whether the footer carries its digest, as those of files written by headrace do: then its statistics
            are what was written.
        repeated: Names that more than one column has.
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
        """Whether a row of the file is a session; rows of the log are its impressions."""
        return self.layout is not None and self.layout.kind == "nested"

    @cached_property
    def num_rows(self) -> int:
        """Rows of the log in the file."""
        return sum(self.group_rows(number) for number in range(self.metadata.num_row_groups))

    def group_rows(self, row_group: int) -> int:
        """Rows of the log in a row group."""
        group = self.metadata.row_group(row_group)
        if not self.is_nested:
            return int(group.num_rows)
        # Every session has impressions, so the entries of any of their columns are counted in the footer.
        return int(group.column(self._impression_leaf).num_values)

    def compressed_bytes(self, row_groups: Iterable[int]) -> dict[str, int]:
        """Bytes that each column of the log takes in some row groups."""
        groups = [self.metadata.row_group(row_group) for row_group in row_groups]
        return {
            name: sum(int(group.column(leaf).total_compressed_size) for group in groups for leaf in leaves)
            for name, leaves in self.leaves.items()
        }

    def has_column(self, name: str) -> bool:
        """Whether the file has a column, itself or by its partition folders."""
        return name in self._types or any(key == name for key, _ in self.file.partition)

    def check_columns(self, names: Sequence[str], *, in_folders: bool = True) -> None:
        """Check that the file has these columns, itself or (unless told otherwise) by its partition folders.

        Raises:
            DataError: Names the missing ones and those there are, or the one that several columns have as their name.
        """
        for name in self.repeated:
            if name in names:
                raise DataError(f"{self.file.path}: more than one column is named {one_line(name)}; rename the others")
        there = [*self.schema.names, *(key for key, _ in self.file.partition if in_folders)]
        missing = [name for name in names if name not in there]
        if missing:
            raise DataError(f"{self.file.path}: no column {shorten_list(missing)}; the file has {shorten_list(there)}")

    def stored_type(self, name: str) -> pa.DataType:
        """Type of a column; partition columns are strings."""
        return self._types.get(name, pa.string())

    @cached_property
    def _types(self) -> dict[str, pa.DataType]:
        return {field.name: field.type for field in self.schema}

    @cached_property
    def leaves(self) -> dict[str, list[int]]:
        """For each column, the numbers of the column chunks (in each row group) that hold it."""
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
        # By position: names may hold dots, or occur twice.
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
        # Not one inside a list of its own: of these the elements are counted.
        return next(n for n in leaves if self.metadata.schema.column(n).max_repetition_level == 1)


def read_footer(file: LogFile) -> Footer:
    """Read and check the footer of a file.

    Raises:
        DataError: The file is gone, cut off, or not Parquet.
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
            if not is_whole:
                check_chunks(parquet.metadata, size, where=file.path)
                check_metadata(parquet.metadata, start, where=file.path)
                check_schema(parquet.metadata, where=file.path)
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
    """Open a file for reading row groups with little memory, without reading its footer again.

    Args:
        footer: Of the file.
        num_columns: Columns that will be read at once; beyond 256, each has a smaller buffer.
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
    """Some columns of a row group as rows of the log, whatever the layout, in batches of about `batch_rows` rows.

    Raises:
        DataError: The row group cannot be decoded, or has another number of rows than its footer says; names it.
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
    """As `iter_plain`, of several row groups that follow each other; batches of small ones are joined."""
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
    """Sessions of a row group of a nested file, as many at a time as have `batch_rows` impressions on average.

    How they are cut does not depend on the columns.
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
    """The batches of a row group; at their end their rows are compared with the footer's count."""
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
    """Batches as Arrow decodes them, its errors with their place.

    Errors of the code that uses the batches do not pass through here: only what Arrow raises is the file's fault.
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
    """First and last time in a row group, in microseconds; None if the footer does not tell, or rows have no time.

    Only a footer with a digest is believed: one flipped bit in a statistic would move rows to another window unseen.
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
    if ticks.null_count:  # beyond what the unit holds: such rows have no readable time
        return None
    first, last = to_time_us(ticks, clock.unit).tolist()
    return first, last


def _row_bytes_on_disk(metadata: pq.FileMetaData) -> dict[str, float]:
    text = (metadata.metadata or {}).get(SOURCES_KEY)
    try:
        values = {} if text is None else json.loads(text)["row_bytes_on_disk"]
        return {str(name): float(num_bytes) for name, num_bytes in values.items()}
    except (ValueError, TypeError, LookupError, AttributeError):
        return {}  # it is for reports only


def _num_leaves(kind: pa.DataType) -> int:
    """Column chunks that hold a column of a type."""
    if isinstance(kind, pa.BaseExtensionType):
        return _num_leaves(kind.storage_type)
    if pt.is_nested(kind):
        return sum(_num_leaves(kind.field(number).type) for number in range(kind.num_fields))
    return 1


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
