"""`inspect_log`: profiles columns, sessions, row groups and bad rows in one streaming pass with bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.errors import ConfigError, expect
from headrace.logs.files import list_files
from headrace.logs.footers import Footer, read_footer
from headrace.logs.inspection.bad_rows import BadRows
from headrace.logs.inspection.blocks import iter_batches, rows_of_sample, spans_of, split_columns
from headrace.logs.inspection.grouping import FoundGroup
from headrace.logs.inspection.guesses import Guess, guess_parts, make_schema, parts_of_schema
from headrace.logs.inspection.one_pass import Pass, make_profiles, widened
from headrace.logs.inspection.overlap import Overlap, find_overlaps, shared_tables
from headrace.logs.inspection.profiles import ColumnProfile
from headrace.logs.inspection.session_tracker import SessionTracker
from headrace.logs.nested.layout import Layout
from headrace.logs.schema import Schema, TimestampColumn
from headrace.logs.stored_columns import StoredColumns
from headrace.logs.time_units import check_log_unit
from headrace.messages import count_of, shorten_list
from headrace.resources import effective_cpus

__all__ = ["LARGE_ROW_GROUP_BYTES", "Inspection", "RowGroup", "inspect_log"]

LARGE_ROW_GROUP_BYTES = 512 << 20
"""Readers work by row group: larger row groups take more memory, and leave fewer to distribute over workers."""


@dataclass(frozen=True)
class RowGroup:
    """A row group of a file, with its uncompressed bytes."""

    file: str
    number: int
    num_rows: int
    num_bytes: int


@dataclass(frozen=True)
class Inspection:
    """The result of inspecting a log.

    Attributes:
        location: The log.
        num_files: Number of files.
        size_bytes: Total size of the files.
        profiles: Profiles of all columns, in file order.
        guesses: Guessed role of each column.
        schema: The given or the guessed schema; None if no column looks like a label.
        sessions: Rows per session; None without a session column.
        duplication: Share of rows that repeat their session's previous row, for each compared column.
        groups: Columns that change together, with the savings of storing them once.
        batch_rows_per_session: Mean rows per session in a batch of 4096 rows in log order; None if unknown.
        layout: Layout of a clustered log; None for others.
        overlaps: Pairs of id columns that have many ids in common.
        row_groups: All row groups.
        bad_rows: Bad rows by column and reason.
        num_bad: Total number of bad rows.
        damaged: Row groups that cannot be decoded, with reasons.
        partitions: Names of partition keys in folder names.
        left_out: Columns that were not inspected, with reasons: duplicate names, or types in several files without a
            common type.
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
    overlaps: tuple[Overlap, ...]
    row_groups: tuple[RowGroup, ...]
    bad_rows: tuple[BadRows, ...]
    num_bad: int
    damaged: tuple[str, ...]
    partitions: tuple[str, ...]
    left_out: Mapping[str, str]

    @property
    def num_rows(self) -> int:
        """Number of rows read."""
        return self.profiles[0].num_rows if self.profiles else 0

    @property
    def shared_tables(self) -> list[tuple[str, ...]]:
        """Columns that hold the same ids and should share an embedding table, by table."""
        return shared_tables(self.overlaps, [profile.name for profile in self.profiles])

    @property
    def clustering_gain(self) -> float:
        """How many times fewer bytes rows take in memory once `headrace cluster` has stored repeated values once."""
        whole = sum(profile.row_bytes for profile in self.profiles)
        saved = sum(group.saved_bytes for group in self.groups if group.pays)
        return whole / max(1.0, whole - saved)

    @property
    def duplicate_bytes_ratio(self) -> float | None:
        """Share of bytes in memory that repeat the session's previous row; None without sessions."""
        if self.sessions is None or not self.duplication:
            return None
        widths = {profile.name: profile.row_bytes for profile in self.profiles}
        repeated = sum(share * widths[name] for name, share in self.duplication.items())
        following = self.sessions.num_following / max(1, self.num_rows)
        return repeated * following / max(1.0, sum(widths.values()))

    @property
    def large_row_groups(self) -> list[RowGroup]:
        """Row groups larger than `LARGE_ROW_GROUP_BYTES`."""
        return [group for group in self.row_groups if group.num_bytes > LARGE_ROW_GROUP_BYTES]

    def to_dict(self) -> dict[str, Any]:
        """All results as JSON-able values."""
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
            "overlaps": [overlap.to_dict() for overlap in self.overlaps],
            "shared_tables": [list(table) for table in self.shared_tables],
            "clustering_gain": self.clustering_gain,
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


def inspect_log(
    location: str | Path,
    *,
    schema: Schema | None = None,
    label: str | None = None,
    ignore: Collection[str] = (),
    num_threads: int | None = None,
) -> Inspection:
    """Inspect a log in one pass; shows progress on standard error if it takes long.

    Without a schema, the first rows are read to guess one, so that sessions and bad rows can be counted in the same
    pass. If all rows lead to a different guess, the pass is repeated. Memory is bounded: a few MiB per column, at most
    160 MiB; 128 MiB for sessions; and one batch of at most 128 columns.

    Args:
        location: A file, folder, glob or URL of Parquet files.
        schema: Schema of the log; None to guess it.
        label: Column that is the label, without a schema; None to guess the labels.
        ignore: Columns without a role in the guessed schema.
        num_threads: Number of threads that process columns in parallel; None for the effective CPUs.

    Raises:
        ConfigError: The location does not exist or has no rows, the schema's timestamp has a different unit, `label` or
            `ignore` names a column that the log does not have, or the label is not a number.
        DataError: A file is not Parquet, or lacks a column of the given schema.
    """
    expect(schema, (Schema, type(None)), where="inspect_log: schema", expected="a Schema")
    is_given = schema is not None
    files = list_files(location)
    footers = [read_footer(file) for file in files]
    if schema is not None:
        for footer in footers:
            footer.check_columns(list(schema.columns))
        if schema.timestamp is not None:
            check_log_unit(footers, schema.timestamp)
    columns = StoredColumns.of(footers)
    stored = columns.joined
    if not len(stored) or not sum(footer.num_rows for footer in footers):
        raise ConfigError(f"{location}: {count_of(len(files), 'file')} without rows, nothing to inspect")
    for option, names in (("label", [] if label is None else [label]), ("ignore", ignore)):
        if unknown := [name for name in names if name not in stored.names]:
            raise ConfigError(
                f"{option}: given {unknown[0]!r}, expected one of the columns: {shorten_list(stored.names)}"
            )
    guess_roles = partial(_guesses, footers=footers, label=label, ignore=ignore)
    with ThreadPoolExecutor(num_threads or effective_cpus().num_threads, thread_name_prefix="inspect") as pool:
        guess = None if is_given else _guess_from_sample(footers, columns, guess_roles, str(location))
        result = Pass(footers, columns, schema if is_given else guess, pool).run()
        if not is_given:
            schema = _schema_of(guess_roles(result.profiles), str(location))
            if schema != guess:
                del result
                result = Pass(footers, columns, schema, pool).run()
    given = parts_of_schema(schema, stored.names) if is_given and schema is not None else None
    guesses = given or guess_roles(result.profiles)
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
        batch_rows_per_session=result.batch_rows_per_session,
        layout=footers[0].layout,
        overlaps=tuple(find_overlaps(result.profiles, guesses)),
        row_groups=tuple(_row_groups(footers)),
        bad_rows=tuple(result.checks.found) if result.checks else (),
        num_bad=result.checks.num_bad if result.checks else 0,
        damaged=tuple(result.damaged.values()),
        partitions=tuple(dict.fromkeys(key for file in files for key, _ in file.partition)),
        left_out=columns.left_out,
    )


def _guess_from_sample(
    footers: Sequence[Footer],
    columns: StoredColumns,
    guess_roles: Callable[[Sequence[ColumnProfile]], list[Guess]],
    where: str,
) -> Schema | None:
    """Guess a schema from the first rows of a log."""
    profiles = {profile.name: profile for profile in make_profiles(columns)}
    stored = columns.joined
    for names in split_columns(stored.names, {}):
        block = pa.schema([stored.field(name) for name in names])
        wanted = rows_of_sample(footers[0], len(stored))
        batches = (
            batch
            for footer in footers
            for span in spans_of(footer, len(stored))
            for _, batch in iter_batches(footer, span, block, len(stored), lambda row_group, damage: None)
        )
        with closing(batches):
            while wanted > 0 and (batch := next(batches, None)) is not None:
                for name in names:
                    profile = profiles[name]
                    profile.update(widened(batch.column(name).slice(0, wanted), profile.type))
                wanted -= batch.num_rows
    return _schema_of(guess_roles(list(profiles.values())), where)


def _schema_of(guesses: Sequence[Guess], where: str) -> Schema | None:
    if not any(guess.part == "label" for guess in guesses):
        return None
    return make_schema(guesses, where=where)


def _guesses(
    profiles: Sequence[ColumnProfile], *, footers: Sequence[Footer], label: str | None, ignore: Collection[str]
) -> list[Guess]:
    """Guess the roles of columns, ignoring a timestamp that training would refuse."""
    guesses = guess_parts(profiles, label=label, ignore=ignore)
    for number, guess in enumerate(guesses):
        if guess.part == "timestamp":
            try:
                check_log_unit(footers, TimestampColumn(name=guess.name, **dict(guess.options)))
            except ConfigError as error:
                guesses[number] = Guess(guess.name, "ignored", str(error).partition(f"{guess.name}: ")[2])
    return guesses


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
