"""`ParquetSource`: reads the rows of a window from Parquet files by row group, in bounded memory."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pt

from headrace.errors import ConfigError, DataError
from headrace.logs.casting import Mask, cast_times, mask_of, to_time_us
from headrace.logs.checks import BadRowPolicy, Problem, RowChecker, RowOrigin, columns_asked
from headrace.logs.common_types import common_type
from headrace.logs.cursor import Selection, TimeSpan
from headrace.logs.files import HIVE_NULL, LogFile, printable
from headrace.logs.footers import Footer, iter_nested, iter_plain, open_parquet, read_footer
from headrace.logs.grouping import Groups, choose_groups, grouped_batch
from headrace.logs.groups import GROUP_PREFIX, group_name
from headrace.logs.plausible_times import time_text
from headrace.logs.raw_rows import values_at
from headrace.logs.row_ids import RowIds
from headrace.logs.schema import Schema, TimestampColumn
from headrace.logs.source import SourceBatch
from headrace.logs.splits import RowGroupSplit, decode_together, splits_of
from headrace.logs.time_units import check_log_unit

__all__ = ["BytesRead", "ParquetSource", "select_files"]


@dataclass(frozen=True)
class BytesRead:
    """Compressed bytes read from files.

    Attributes:
        num_bytes: Bytes read.
        num_plain_bytes: Bytes of the same columns and rows before clustering, if known; else the bytes read.
    """

    num_bytes: float = 0.0
    num_plain_bytes: float = 0.0

    def __add__(self, more: BytesRead) -> BytesRead:
        return BytesRead(self.num_bytes + more.num_bytes, self.num_plain_bytes + more.num_plain_bytes)

    def __sub__(self, before: BytesRead) -> BytesRead:
        return BytesRead(self.num_bytes - before.num_bytes, self.num_plain_bytes - before.num_plain_bytes)


class ParquetSource:
    """Selected rows of Parquet files; implements `headrace.logs.source.Source`.

    The layout is detected from the files. Nested logs (one row per session) are read without expansion: features that
    repeat together are group columns, see `headrace.logs.groups`. Rows are always impressions.

    A split is the selected part of a row group; consecutive small ones are joined. It is decoded in batches of at most
    `max_rows_per_batch` rows with only the required columns, so memory does not grow with files or row groups. Columns
    missing from a file may come from its partition folders (`hour=12`). Batches have the schema `output_schema` with
    fixed types, see `headrace.logs.columns.column_check`. Any thread may read any split, and a split is always read the
    same way.

    Args:
        selections: Selections to read, normally `Window.selections`; for whole files see `select_files`.
        schema: The schema of the log.
        columns: Schema columns to read and check; None for all.
        policy: How to handle bad rows.
        optional: Columns that may be missing from files.
        max_rows_per_batch: Maximum rows per batch.

    Attributes:
        row_ids: Source of the row ids.

    Raises:
        DataError: A file is not readable Parquet, lacks a column, has fewer rows than selected, or has a different
            layout than the others.
        ConfigError: A requested column is not in the schema, or the timestamp is read and has a different unit.
    """

    def __init__(
        self,
        selections: Sequence[Selection],
        schema: Schema,
        *,
        columns: Sequence[str] | None = None,
        policy: BadRowPolicy | None = None,
        optional: Collection[str] = (),
        max_rows_per_batch: int = 65_536,
    ) -> None:
        columns = columns_asked(schema, columns, policy, where="ParquetSource")
        self._policy = BadRowPolicy() if policy is None else policy
        self._max_rows = max_rows_per_batch
        files = {s.file.path: s for s in selections}
        footers = {path: s.footer or read_footer(s.file) for path, s in files.items()}
        _check_layouts(list(footers.values()))
        self.row_ids = RowIds.of({s.file_number: footers[s.file.path] for s in selections}, schema, optional=optional)
        left_out = {name for name in optional if not all(footer.has_column(name) for footer in footers.values())}
        left_out |= {schema.row_id} if self.row_ids.schema.row_id is None and schema.row_id is not None else set()
        self._schema = schema = self.row_ids.schema
        self._columns = tuple(name for name in columns if name not in left_out)
        stored = _stored_schema(schema, list(footers.values()))
        self._groups = _common_groups(next(iter(footers.values()), None), schema, self._columns)
        names = {group_name(number): members for number, members in self._groups.items()}
        self._checker = RowChecker(schema, self._columns, self._policy, stored, names)
        self._needed = list(self._checker.inputs)
        self._clock = schema.timestamp
        if any(s.time_range_us is not None for s in selections):
            if self._clock is None:
                raise ConfigError("windows by time need a timestamp column in the schema")
            self._needed = list(dict.fromkeys([*self._needed, self._clock.name]))
        if self.row_ids.column is not None:
            self._needed.append(self.row_ids.column)
        for footer in footers.values():
            footer.check_columns(self._needed)
        if self._clock is not None and self._clock.name in self._needed:
            check_log_unit(list(footers.values()), self._clock)
        self._read_lock, self._bytes_read = threading.Lock(), BytesRead()
        self._splits = [split for s in selections for split in splits_of(s, footers[s.file.path], max_rows_per_batch)]

    @property
    def output_schema(self) -> pa.Schema:
        """Names and types of the batches' columns: the requested columns, then `ROW_ID`."""
        return self._checker.output_schema

    def __len__(self) -> int:
        return len(self._splits)

    def describe(self, split: int) -> str:
        """Describe a split: its file and row group."""
        return self._splits[split].place

    def locate(self, row_id: int) -> str:
        """Describe the file and row of a derived row id, for error messages; only the id if the schema has a row id
        column."""
        return self.row_ids.locate(row_id)

    def num_rows(self, split: int) -> int:
        """Number of rows of a split, including rows outside the time range and bad rows."""
        part = self._splits[split]
        return part.stop - part.start

    def estimate_bytes(self, split: int) -> int:
        """Estimate the Arrow bytes of a split's largest batch from the footer, without reading data."""
        part = self._splits[split]
        leaves = [leaf for name in self._needed for leaf in part.footer.leaves.get(name, ())]
        total = num_rows = 0
        for number in part.row_groups:
            group = part.footer.metadata.row_group(number)
            for chunk in map(group.column, leaves):
                # Decoded numbers take 8 bytes each, and strings at least their offsets.
                total += max(chunk.total_uncompressed_size, 8 * chunk.num_values)
            num_rows += part.footer.group_rows(number)
        return int(total * min(self.num_rows(split), self._max_rows) // max(num_rows, 1))

    def read(self, split: int) -> Iterator[SourceBatch]:
        """Yield the batches of one split, in order.

        Raises:
            DataError: The row group is damaged, or a row is bad and the policy is "fail"; the message names the place.
        """
        part = self._splits[split]
        for start, raw in self._batches(part, self._needed, self._groups):
            yield self._batch(part, start, raw)
        found = self._bytes_of(part)
        with self._read_lock:
            self._bytes_read += found

    @property
    def bytes_read(self) -> BytesRead:
        """Bytes of all completely read splits."""
        with self._read_lock:
            return self._bytes_read

    def _bytes_of(self, part: RowGroupSplit) -> BytesRead:
        """Bytes of a split's columns, in proportion to its row groups, computed from footers."""
        stored, before = part.footer.compressed_bytes(part.row_groups), part.footer.row_bytes_on_disk
        num_rows, all_rows = part.stop - part.start, sum(map(part.footer.group_rows, part.row_groups))
        row_bytes = {name: stored.get(name, 0) / all_rows for name in self._needed}
        plain = sum(before.get(name, given) for name, given in row_bytes.items())
        return BytesRead(num_rows * sum(row_bytes.values()), num_rows * plain)

    def _batches(
        self, part: RowGroupSplit, names: Sequence[str], groups: Groups | None = None
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield batches of a split with their start rows; the boundaries do not depend on the columns."""
        file_names = part.footer.schema.names
        grouped = {name for members in (groups or {}).values() for name in members}
        there = set(file_names)
        stored = [name for name in names if name in there]
        partition = dict(part.footer.file.partition)
        position = 0
        with open_parquet(part.footer) as parquet:
            for batch in self._decode(part, parquet, stored or file_names[:1], groups or {}):
                first, last = max(part.start - position, 0), min(part.stop - position, batch.num_rows)
                for start in range(first, last, self._max_rows):
                    rows = batch.slice(start, min(last - start, self._max_rows))
                    columns = {name: rows.column(name) for name in rows.schema.names if name.startswith(GROUP_PREFIX)}
                    for name in names:
                        if name in there and name not in grouped:
                            columns[name] = rows.column(name)
                        elif name not in grouped:
                            columns[name] = _constant(partition[name], rows.num_rows)
                    yield position + start, pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
                position += batch.num_rows
                if position >= part.stop:
                    break

    def _decode(
        self, part: RowGroupSplit, parquet: pq.ParquetFile, names: list[str], groups: Groups
    ) -> Iterator[pa.RecordBatch]:
        """Decode the rows of the row groups, with some columns in groups."""
        if len(part.row_groups) > 1:
            yield from decode_together(part, parquet, names, self._max_rows)
            return
        row_group = part.row_groups[0]
        if not groups:
            yield from iter_plain(part.footer, parquet, row_group, names, self._max_rows)
            return
        grouped = {name for members in groups.values() for name in members}
        plain = [name for name in names if name not in grouped]
        for rows in iter_nested(part.footer, parquet, row_group, names, self._max_rows):
            yield grouped_batch(rows, groups, plain)

    def _batch(self, part: RowGroupSplit, start: int, raw: pa.RecordBatch) -> SourceBatch:
        within = np.arange(start, start + raw.num_rows, dtype=np.int64)
        problems: tuple[Problem, ...] = ()
        if part.selection.time_range_us is not None:
            assert self._clock is not None
            times = _Times.of(raw.column(self._clock.name), self._clock, part.selection)
            if not times.inside.all():
                raw, within = raw.filter(pa.array(times.inside)), within[times.inside]
            problems = times.problems(self._clock.name, is_checked=self._clock.name in self._checker.inputs)
        rows = within + part.group_start
        ids = self.row_ids.take(raw, part.selection.file_number, rows, where=part.place)
        raw = raw if self.row_ids.column is None else raw.drop_columns([self.row_ids.column])
        origin = RowOrigin(part.footer.file.shown_path, part.row_groups_of(within), rows, ids)
        return self._checker.check(raw, origin, lambda bad: self._rest_of(part, within[bad]), problems)

    def _rest_of(self, part: RowGroupSplit, wanted: npt.NDArray[np.int64]) -> dict[str, list[Any]]:
        """The schema columns that are not read, for some rows of a split; only for the quarantine."""
        there = [*part.footer.schema.names, *(key for key, _ in part.footer.file.partition)]
        names = [name for name in self._schema.columns if name in there and name not in self._needed]
        found: dict[str, list[Any]] = {name: [] for name in names}
        for start, batch in self._batches(part, names) if names else ():
            inside = wanted[(wanted >= start) & (wanted < start + batch.num_rows)] - start
            for name, values in values_at(batch, inside).items():
                found[name] += values
            if start + batch.num_rows > wanted[-1]:
                break
        return found


def select_files(files: Iterable[LogFile]) -> list[Selection]:
    """Select whole files, numbered in the order given, for a pass without a cursor.

    Raises:
        DataError: A file is not readable Parquet.
    """
    selections = []
    for number, file in enumerate(files):
        footer = read_footer(file)
        selections.append(Selection(file, number, 0, footer.num_rows, None, footer.num_rows, footer=footer))
    return selections


def _stored_schema(schema: Schema, footers: Sequence[Footer]) -> pa.Schema:
    """Common types of the columns in all files; columns missing from a file are strings there, like partition
    values."""
    fields = []
    for name in schema.columns:
        kinds = list(dict.fromkeys(footer.stored_type(name) for footer in footers)) or [pa.string()]
        # Without a common type, rows of some files are bad for any choice.
        fields.append((name, common_type(kinds) or next(kind for kind in kinds if not pt.is_null(kind))))
    return pa.schema(fields)


def _check_layouts(footers: Sequence[Footer]) -> None:
    """Refuse to mix nested files with files of another layout."""
    nested = [footer for footer in footers if footer.is_nested]
    for footer in footers if nested else ():
        if not footer.is_nested or footer.layout != nested[0].layout:
            raise DataError(
                f"{footer.file.path}: its layout differs from that of {nested[0].file.path}; "
                f"cluster both with one command"
            )


def _common_groups(first: Footer | None, schema: Schema, columns: Sequence[str]) -> Groups:
    """Groups of nested files; empty for other layouts."""
    if first is None or not first.is_nested:
        return {}
    assert first.layout is not None
    return choose_groups(first.layout, schema, columns)


def _constant(value: str, num_rows: int) -> pa.Array:
    text: Any = None if value == HIVE_NULL else printable(value)
    return pa.repeat(pa.scalar(text, pa.string()), num_rows)


class _Times(NamedTuple):
    """The times of some rows, evaluated for a selection with a time range.

    Attributes:
        inside: Bool[rows], selected rows.
        time_us: int64[rows], times in microseconds; 0 if unreadable.
        unreadable: Bool[rows].
        far: Bool[rows], rows outside of the plausible times.
        plausible_us: Range of plausible times, or None for all.
    """

    inside: Mask
    time_us: npt.NDArray[np.int64]
    unreadable: Mask
    far: Mask
    plausible_us: TimeSpan | None

    @classmethod
    def of(cls, column: pa.Array, clock: TimestampColumn, selection: Selection) -> _Times:
        """Evaluate the times of a batch; rows without a usable time belong to the selection without a start."""
        assert selection.time_range_us is not None
        ticks, _ = cast_times(column, clock.unit)
        time_us = to_time_us(ticks, clock.unit)
        start_us, stop_us = selection.time_range_us
        nowhere = np.zeros(len(time_us), dtype=np.bool_)
        unreadable = mask_of(ticks.is_null()) if ticks.null_count else nowhere
        far, plausible = nowhere, selection.plausible_us
        if plausible is not None:
            far = ((time_us < plausible[0]) | (time_us >= plausible[1])) & ~unreadable
        inside = np.ones(len(time_us), dtype=np.bool_)
        if start_us is not None:
            inside &= time_us >= start_us
        if stop_us is not None:
            inside &= time_us < stop_us
        return cls(np.where(unreadable | far, start_us is None, inside), time_us, unreadable, far, plausible)

    def problems(self, name: str, *, is_checked: bool) -> tuple[Problem, ...]:
        """Problems with the times of selected rows; unreadable times only if the column is not checked otherwise."""
        far, unreadable, time_us = self.far[self.inside], self.unreadable[self.inside], self.time_us[self.inside]
        found: list[Problem] = []
        if self.plausible_us is not None and far.any():
            span = f"{time_text(self.plausible_us[0])} to {time_text(self.plausible_us[1])} (window.max_distance_s)"
            found.append(
                (far, name, lambda row: f"time {time_text(int(time_us[row]))} is far outside the log's {span}")
            )
        if not is_checked and unreadable.any():
            found.append((unreadable, name, "not a time"))
        return tuple(found)
