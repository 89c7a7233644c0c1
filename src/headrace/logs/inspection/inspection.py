"""Inspecting a log: one streaming pass that profiles columns, sessions, row groups and bad rows in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.errors import ConfigError, DataError, expect
from headrace.logs.canonical import canonical
from headrace.logs.casting import cast_rows
from headrace.logs.common_types import widen
from headrace.logs.files import list_files
from headrace.logs.footers import Footer, iter_groups, open_parquet, read_footer
from headrace.logs.inspection.bad_rows import BadRows, RowChecks
from headrace.logs.inspection.grouping import FoundGroup, GroupSample
from headrace.logs.inspection.guesses import Guess, guess_parts, make_schema, parts_of_schema
from headrace.logs.inspection.hashing import hash_column
from headrace.logs.inspection.id_counter import slots_for
from headrace.logs.inspection.profiles import ColumnProfile, kind_of
from headrace.logs.inspection.session_tracker import SessionTracker
from headrace.logs.nested.layout import Layout
from headrace.logs.schema import Schema
from headrace.logs.source import ORIGINAL_ROW
from headrace.logs.stored_columns import StoredColumns
from headrace.messages import count_of
from headrace.observe.progress import Progress
from headrace.resources import effective_cpus

__all__ = ["LARGE_ROW_GROUP_BYTES", "Inspection", "RowGroup", "inspect_log"]

BATCH_ROWS = 32_768
"""Enough to keep kernels busy; of wide logs a batch has fewer, see `BATCH_BYTES`."""
BATCH_BYTES = 128 << 20
"""Of a batch and what is computed from it, about."""
SAMPLE_BATCHES = 4
LARGE_ROW_GROUP_BYTES = 512 << 20
"""Readers work by row group: larger ones cost memory, and leave fewer to share among workers."""


@dataclass(frozen=True)
class RowGroup:
    """One row group of a file; bytes before compression."""

    file: str
    number: int
    num_rows: int
    num_bytes: int


@dataclass(frozen=True)
class Inspection:
    """What was found in a log.

    Attributes:
        location: The log.
        num_files: Files in it.
        size_bytes: Of the files.
        profiles: Of all columns, in the order of the files.
        guesses: The part of each column.
        schema: The schema given, or the one guessed; None if no column looks like a label.
        sessions: Rows per session; None without a session column.
        duplication: For each column compared, share of rows that repeat their session's previous row.
        groups: Columns that change together, and what keeping each group's values once would save.
        batch_rows_per_session: Rows of a session in a batch of 4096 rows in the order of the log; None if unknown.
        layout: Of a clustered log; None for others.
        row_groups: All of them.
        bad_rows: By column and reason.
        num_bad: Rows that are bad for any reason.
        damaged: Row groups that cannot be decoded, each with the reason.
        partitions: Names of the folders' partition keys.
        left_out: Columns that were not looked at, with the reason: those that share their name, or have types in
            several files that no type holds.
    """

    location: str
    num_files: int
    size_bytes: int
    profiles: tuple[ColumnProfile, ...]
    guesses: tuple[Guess, ...]
    schema: Schema | None
    sessions: SessionTracker | None
    duplication: dict[str, float]
    groups: tuple[FoundGroup, ...]
    batch_rows_per_session: float | None
    layout: Layout | None
    row_groups: tuple[RowGroup, ...]
    bad_rows: tuple[BadRows, ...]
    num_bad: int
    damaged: tuple[str, ...]
    partitions: tuple[str, ...]
    left_out: Mapping[str, str]

    @property
    def num_rows(self) -> int:
        """Rows that were read."""
        return self.profiles[0].num_rows if self.profiles else 0

    @property
    def duplicate_bytes_ratio(self) -> float | None:
        """Share of all bytes in memory that repeat the session's previous row; None without sessions."""
        if self.sessions is None or not self.duplication:
            return None
        widths = {profile.name: profile.row_bytes for profile in self.profiles}
        repeated = sum(share * widths[name] for name, share in self.duplication.items())
        following = self.sessions.num_following / max(1, self.num_rows)
        return repeated * following / max(1.0, sum(widths.values()))

    @property
    def large_row_groups(self) -> list[RowGroup]:
        """Row groups above `LARGE_ROW_GROUP_BYTES`."""
        return [group for group in self.row_groups if group.num_bytes > LARGE_ROW_GROUP_BYTES]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        columns = {}
        for profile, guess in zip(self.profiles, self.guesses, strict=True):
            columns[profile.name] = profile.to_dict() | {"part": guess.part, "reason": guess.reason}
            if profile.name in self.duplication:
                columns[profile.name]["duplication"] = self.duplication[profile.name]
            if guess.part == "label":
                columns[profile.name]["label_rate"] = profile.mean
        groups = np.array([group.num_bytes for group in self.row_groups] or [0])
        return {
            "location": self.location,
            "files": self.num_files,
            "size_bytes": self.size_bytes,
            "rows": self.num_rows,
            "partitions": list(self.partitions),
            "columns": columns,
            "sessions": None if self.sessions is None else _sessions_to_dict(self.sessions),
            "duplicate_bytes_ratio": self.duplicate_bytes_ratio,
            "batch_rows_per_session": self.batch_rows_per_session,
            "groups": [group.to_dict() for group in self.groups],
            "layout": None if self.layout is None else self.layout.kind,
            "row_groups": {
                "count": len(self.row_groups),
                "median_bytes": int(np.median(groups)),
                "max_bytes": int(groups.max()),
                "too_large": [vars(group) for group in self.large_row_groups],
            },
            "bad_rows": {"rows": self.num_bad, "found": [bad.to_dict() for bad in self.bad_rows]},
            "damaged": list(self.damaged),
            "left_out": dict(self.left_out),
            "schema": None if self.schema is None else self.schema.model_dump(mode="json", exclude_none=True),
        }


def inspect_log(location: str | Path, *, schema: Schema | None = None, num_threads: int | None = None) -> Inspection:
    """Read a log once and tell what is in it; shows progress on standard error if that takes long.

    Without a schema its first rows are read to guess one, so that sessions and bad rows can be looked at in the same
    pass; where all rows lead to another guess, the pass is made once more. Memory stays bounded: a few MiB a column,
    64 MiB for sessions, and one batch.

    Args:
        location: A file, folder, glob or URL of Parquet files.
        schema: What the log should be; guessed when None.
        num_threads: Threads that work on columns side by side; the effective CPUs when None.

    Raises:
        ConfigError: There is nothing at the location, or no rows.
        DataError: A file is not Parquet, or lacks a column of the schema given.
    """
    expect(schema, (Schema, type(None)), where="inspect_log: schema", expected="a Schema")
    is_given = schema is not None
    files = list_files(location)
    footers = [read_footer(file) for file in files]
    if schema is not None:
        for footer in footers:
            footer.check_columns(list(schema.columns))
    columns = StoredColumns.of(footers)
    stored = columns.joined
    if not len(stored) or not sum(footer.num_rows for footer in footers):
        raise ConfigError(f"{location}: {count_of(len(files), 'file')} without rows, nothing to inspect")
    with ThreadPoolExecutor(num_threads or effective_cpus().num_threads, thread_name_prefix="inspect") as pool:
        guess = None if is_given else _guess_from_sample(footers, columns, str(location))
        result = _Pass(footers, columns, schema if is_given else guess, pool).run()
        if not is_given:
            schema = _guess(result.profiles, str(location))
            if schema != guess:
                del result
                result = _Pass(footers, columns, schema, pool).run()
    given = parts_of_schema(schema, stored.names) if is_given and schema is not None else None
    guesses = given or guess_parts(result.profiles)
    return Inspection(
        location=str(location),
        num_files=len(files),
        size_bytes=sum(file.size_bytes for file in files),
        profiles=tuple(result.profiles),
        guesses=tuple(guesses),
        schema=schema,
        sessions=result.sessions,
        duplication=result.duplication(),
        groups=tuple(result.groups(schema)),
        batch_rows_per_session=None if result.sample is None else result.sample.batch_rows_per_session,
        layout=footers[0].layout,
        row_groups=tuple(_row_groups(footers)),
        bad_rows=tuple(result.checks.found) if result.checks else (),
        num_bad=result.checks.num_bad if result.checks else 0,
        damaged=tuple(result.damaged),
        partitions=tuple(dict.fromkeys(key for file in files for key, _ in file.partition)),
        left_out=columns.left_out,
    )


class _Pass:
    """One pass over all rows."""

    def __init__(
        self, footers: Sequence[Footer], columns: StoredColumns, schema: Schema | None, pool: ThreadPoolExecutor
    ) -> None:
        stored = columns.joined
        self.profiles = _profiles(columns)
        self.checks = RowChecks(schema, stored) if schema is not None else None
        self.damaged: list[str] = []
        self._footers = footers
        self._stored = stored
        self._pool = pool
        session = schema.session_id if schema is not None else None
        self._session = session if session in stored.names else None
        comparable = [field.name for field in stored if _has_hash(field.type) and field.name != self._session]
        self._compared = comparable if self._session is not None else []
        self.sessions = SessionTracker(len(self._compared)) if self._session is not None else None
        self.sample = GroupSample(self._compared) if self._session is not None else None

    def run(self) -> _Pass:
        total = sum(footer.num_rows for footer in self._footers)
        with Progress("inspect", total=total) as progress:
            for footer in self._footers:
                group_ends = _group_ends(footer)
                for first_row, batch in _batches(footer, self._stored, self.damaged.append):
                    self._add(batch, footer, group_ends, first_row)
                    progress.advance(batch.num_rows)
        return self

    def duplication(self) -> dict[str, float]:
        if self.sessions is None or not self.sessions.num_following:
            return {}
        return dict(zip(self._compared, self.sessions.duplication().tolist(), strict=True))

    def groups(self, schema: Schema | None) -> list[FoundGroup]:
        if self.sample is None or schema is None:
            return []
        apart = [label.name for label in schema.labels]
        apart += [name for name in (schema.weight, schema.row_id, ORIGINAL_ROW) if name is not None]
        apart += [schema.timestamp.name] if schema.timestamp is not None else []
        widths = {profile.name: profile.row_bytes for profile in self.profiles}
        return self.sample.groups(widths, without=apart)

    def _add(self, batch: pa.RecordBatch, footer: Footer, group_ends: npt.NDArray[np.int64], first_row: int) -> None:
        checked: dict[str, Any] = {}

        def work(profile: ColumnProfile) -> Any:
            column = batch.column(profile.name)
            if self.checks is not None and profile.name in self.checks.columns:
                checked[profile.name] = self.checks.check_column(profile.name, column)
            return profile.update(_widened(column, profile.type))

        hashes = dict(zip(batch.schema.names, self._pool.map(work, self.profiles), strict=True))
        if self.checks is not None:
            in_order = {name: checked[name] for name in self.checks.columns}
            self.checks.add(batch, in_order, file=footer.file.path, group_ends=group_ends, first_row=first_row)
        if self.sessions is not None:
            columns = [hashes[name] for name in self._compared]
            values = np.stack(columns, axis=1) if columns else np.zeros((batch.num_rows, 0), dtype=np.uint64)
            self.sessions.add(hashes[str(self._session)], values)
            assert self.sample is not None
            self.sample.add(hashes[str(self._session)], values)


def _batches(
    footer: Footer, stored: pa.Schema, report_damage: Callable[[str], None]
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield (first row in the file, batch) with all columns as the file stores them; null where it lacks one."""
    names = [name for name in stored.names if name in set(footer.schema.names)] or footer.schema.names[:1]
    batch_rows = _batch_rows(footer, len(stored))
    ends = _group_ends(footer)
    with open_parquet(footer, num_columns=len(names)) as parquet:
        for row_groups in _small_together(ends, batch_rows):
            for part in (row_groups, *([number] for number in row_groups if len(row_groups) > 1)):
                position = int(ends[part[0] - 1]) if part[0] else 0
                found: Iterator[pa.RecordBatch] = iter_groups(footer, parquet, part, names, batch_rows)
                try:
                    # Small ones are read whole before any is passed on: damage in one costs none of the others.
                    for batch in list(found) if len(part) > 1 else found:
                        yield position, _complete(batch, stored)
                        position += batch.num_rows
                except DataError as error:
                    if len(part) == 1:
                        report_damage(str(error))
                    continue
                if len(part) == len(row_groups):
                    break


def _small_together(ends: npt.NDArray[np.int64], max_rows: int) -> Iterator[list[int]]:
    """Row groups that follow each other, as many together as have `max_rows` rows; opening each costs milliseconds."""
    held: list[int] = []
    start = 0
    for number, end in enumerate(ends.tolist()):
        if held and end - start > max_rows:
            yield held
            held, start = [], int(ends[number - 1])
        held.append(number)
    if held:
        yield held


def _group_ends(footer: Footer) -> npt.NDArray[np.int64]:
    """int64 [row groups], rows of the log in the file up to the end of each."""
    counts = [footer.group_rows(number) for number in range(footer.metadata.num_row_groups)]
    return np.cumsum(counts, dtype=np.int64)


def _batch_rows(footer: Footer, num_columns: int) -> int:
    """Rows whose values, with a hash of each in two arrays, fit in `BATCH_BYTES`."""
    sizes = [footer.metadata.row_group(n).total_byte_size for n in range(min(footer.metadata.num_row_groups, 100))]
    num_rows = sum(footer.group_rows(number) for number in range(len(sizes)))
    row_bytes = 2 * sum(sizes) / max(1, num_rows) + 24 * num_columns
    return int(max(64, min(BATCH_ROWS, BATCH_BYTES / max(1, row_bytes))))


def _complete(batch: pa.RecordBatch, stored: pa.Schema) -> pa.RecordBatch:
    there = set(batch.schema.names)
    columns = [
        batch.column(field.name) if field.name in there else pa.nulls(batch.num_rows, field.type) for field in stored
    ]
    return pa.RecordBatch.from_arrays(columns, names=stored.names)


def _widened(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """A column in the common type of all files, null where that cannot hold a value."""
    try:
        return widen(array, kind)
    except pa.ArrowException:
        return cast_rows(array, kind)[0]


def _profiles(columns: StoredColumns) -> list[ColumnProfile]:
    stored = columns.joined
    slots = slots_for(len(stored))
    return [
        ColumnProfile(field.name, field.type, types=columns.columns[field.name].files, max_slots=slots)
        for field in stored
    ]


def _guess_from_sample(footers: Sequence[Footer], columns: StoredColumns, where: str) -> Schema | None:
    profiles = _profiles(columns)
    batches = (batch for footer in footers for _, batch in _batches(footer, columns.joined, lambda damage: None))
    with closing(batches):
        for batch in islice(batches, SAMPLE_BATCHES):
            for profile in profiles:
                profile.update(_widened(batch.column(profile.name), profile.type))
    return _guess(profiles, where)


def _guess(profiles: Sequence[ColumnProfile], where: str) -> Schema | None:
    guesses = guess_parts(profiles)
    if not any(guess.part == "label" for guess in guesses):
        return None
    return make_schema(guesses, where=where)


def _has_hash(kind: pa.DataType) -> bool:
    return kind_of(kind) != "other" and hash_column(canonical(pa.nulls(0, kind)).values) is not None


def _row_groups(footers: Sequence[Footer]) -> Iterator[RowGroup]:
    for footer in footers:
        for number in range(footer.metadata.num_row_groups):
            group = footer.metadata.row_group(number)
            yield RowGroup(footer.file.path, number, footer.group_rows(number), group.total_byte_size)


def _sessions_to_dict(sessions: SessionTracker) -> dict[str, Any]:
    return {
        "sessions": round(sessions.num_sessions),
        "rows": sessions.num_rows,
        "mean_rows": sessions.mean_rows(),
        "p50_rows": sessions.percentile_rows(50),
        "p99_rows": sessions.percentile_rows(99),
        "max_rows": sessions.max_rows(),
        "returns": sessions.num_returns,
        "split": sessions.num_split,
    }
