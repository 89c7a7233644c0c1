"""One pass over a log, block by block of columns: profiles, sessions and bad rows."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.logs.canonical import Mask, canonical
from headrace.logs.casting import cast_rows
from headrace.logs.common_types import widen
from headrace.logs.footers import Footer
from headrace.logs.inspection.bad_rows import RowChecks
from headrace.logs.inspection.blocks import group_ends, iter_batches, spans_of, split_columns
from headrace.logs.inspection.grouping import FoundGroup, GroupSample, found_groups
from headrace.logs.inspection.hashing import Hashes, hash_column
from headrace.logs.inspection.id_counter import FIRST_SLOTS, MAX_SLOTS, slots_for
from headrace.logs.inspection.profiles import ColumnProfile, kind_of
from headrace.logs.inspection.session_tracker import MAX_BYTES as SESSION_BYTES
from headrace.logs.inspection.session_tracker import SessionTracker
from headrace.logs.schema import Schema
from headrace.logs.source import ORIGINAL_ROW
from headrace.logs.stored_columns import StoredColumns
from headrace.observe.progress import Progress

__all__ = ["Pass", "make_profiles", "widened"]


@dataclass
class _Block:
    """Columns that are read together, and their results.

    Attributes:
        stored: The columns, and the session column.
        profiles: Profiles of the columns.
        compared: Columns to compare within sessions.
        sessions: Compares them within sessions; None without a session column.
        sample: Sample of sessions; None without a session column.
    """

    stored: pa.Schema
    profiles: list[ColumnProfile]
    compared: list[str]
    sessions: SessionTracker | None
    sample: GroupSample | None


class Pass:
    """One pass over all rows of some files.

    Attributes:
        profiles: Profiles of all columns.
        checks: Checks for bad rows; None without a schema.
        damaged: Errors of row groups that cannot be decoded, by file and row group.
    """

    def __init__(
        self, footers: Sequence[Footer], columns: StoredColumns, schema: Schema | None, pool: ThreadPoolExecutor
    ) -> None:
        stored = columns.joined
        self.profiles = make_profiles(columns)
        self.checks = RowChecks(schema, stored) if schema is not None else None
        self.damaged: dict[tuple[str, int], str] = {}
        self._footers = footers
        self._num_columns = len(stored)
        self._pool = pool
        session = schema.session_id if schema is not None else None
        self._session = session if session in stored.names else None
        names = split_columns(stored.names, self.checks.together if self.checks is not None else {})
        self._blocks = [self._block(stored, block, number, len(names)) for number, block in enumerate(names)]

    @property
    def sessions(self) -> SessionTracker | None:
        """Rows per session; None without a session column."""
        return self._blocks[0].sessions

    @property
    def batch_rows_per_session(self) -> float | None:
        """See `GroupSample.batch_rows_per_session`."""
        sample = self._blocks[0].sample
        return None if sample is None else sample.batch_rows_per_session

    def run(self) -> Pass:
        """Read all rows."""
        total = sum(footer.num_rows for footer in self._footers)
        with Progress("inspect", total=total) as progress:
            for footer in self._footers:
                ends = group_ends(footer)
                report = partial(self._add_damage, footer.file.path)
                for span in spans_of(footer, self._num_columns):
                    counted = np.zeros(span[2] - span[1], dtype=np.bool_)
                    for block in self._blocks:
                        batches = iter_batches(footer, span, block.stored, self._num_columns, report)
                        for first_row, batch in batches:
                            bad = counted[first_row - span[1] :][: batch.num_rows]
                            self._add(block, batch, bad, footer, ends, first_row)
                            progress.advance(batch.num_rows if block is self._blocks[-1] else 0)
        return self

    def duplication(self) -> dict[str, float]:
        """Share of rows that repeat their session's previous row, for each compared column."""
        found: dict[str, float] = {}
        for block in self._blocks:
            if block.sessions is not None and block.sessions.num_following:
                found |= zip(block.compared, block.sessions.duplication().tolist(), strict=True)
        return found

    def groups(self, schema: Schema | None) -> list[FoundGroup]:
        """Columns that change together."""
        samples = [block.sample for block in self._blocks if block.sample is not None]
        if not samples or schema is None:
            return []
        apart = [label.name for label in schema.labels]
        apart += [name for name in (schema.weight, schema.row_id, ORIGINAL_ROW) if name is not None]
        apart += [schema.timestamp.name] if schema.timestamp is not None else []
        widths = {profile.name: profile.row_bytes for profile in self.profiles}
        return found_groups(samples, widths, without=apart)

    def _block(self, stored: pa.Schema, names: list[str], number: int, num_blocks: int) -> _Block:
        own = set(names)
        profiles = [profile for profile in self.profiles if profile.name in own]
        if self._session is None:
            return _Block(pa.schema([stored.field(name) for name in names]), profiles, [], None, None)
        compared = [name for name in names if _has_hash(stored.field(name).type) and name != self._session]
        # Only the first block counts sessions.
        slots = MAX_SLOTS if number == 0 else FIRST_SLOTS
        sessions = SessionTracker(len(compared), max_bytes=SESSION_BYTES // num_blocks, max_slots=slots)
        sample = GroupSample(compared, num_columns=self._num_columns)
        with_session = dict.fromkeys([*names, self._session])
        return _Block(pa.schema([stored.field(name) for name in with_session]), profiles, compared, sessions, sample)

    def _add_damage(self, path: str, row_group: int, damage: str) -> None:
        self.damaged.setdefault((path, row_group), damage)  # several blocks may find the same damage

    def _add(
        self,
        block: _Block,
        batch: pa.RecordBatch,
        counted: Mask,
        footer: Footer,
        ends: npt.NDArray[np.int64],
        first_row: int,
    ) -> None:
        checked: dict[str, Any] = {}

        def work(profile: ColumnProfile) -> Any:
            column = batch.column(profile.name)
            if self.checks is not None and profile.name in self.checks.columns:
                checked[profile.name] = self.checks.check_column(profile.name, column)
            return profile.update(widened(column, profile.type))

        names = [profile.name for profile in block.profiles]
        hashes = dict(zip(names, self._pool.map(work, block.profiles), strict=True))
        if self.checks is not None:
            in_order = {name: checked[name] for name in self.checks.columns if name in checked}
            self.checks.add(batch, in_order, counted, file=footer.file.path, group_ends=ends, first_row=first_row)
        if block.sessions is not None and block.sample is not None:
            columns = [hashes[name] for name in block.compared]
            values = np.stack(columns, axis=1) if columns else np.zeros((batch.num_rows, 0), dtype=np.uint64)
            sessions = hashes.get(str(self._session))
            if sessions is None:
                sessions = self._session_hashes(batch)
            block.sessions.add(sessions, values)
            block.sample.add(sessions, values)

    def _session_hashes(self, batch: pa.RecordBatch) -> Hashes:
        """Hashes of the session column, computed by its profile."""
        profile = next(profile for profile in self.profiles if profile.name == self._session)
        hashes = hash_column(canonical(widened(batch.column(profile.name), profile.type)).values)
        assert hashes is not None, f"{profile.name} names sessions, so it has hashes"
        return hashes


def widened(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Cast a column to the common type of all files, with null for values that do not fit."""
    try:
        return widen(array, kind)
    except pa.ArrowException:
        return cast_rows(array, kind)[0]


def make_profiles(columns: StoredColumns) -> list[ColumnProfile]:
    """Create empty profiles of all columns, whose counters share a memory budget."""
    stored = columns.joined
    slots = slots_for(len(stored))
    return [
        ColumnProfile(field.name, field.type, types=columns.columns[field.name].files, max_slots=slots)
        for field in stored
    ]


def _has_hash(kind: pa.DataType) -> bool:
    return kind_of(kind) != "other" and hash_column(canonical(pa.nulls(0, kind)).values) is not None
