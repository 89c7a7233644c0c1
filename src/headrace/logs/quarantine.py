"""The quarantine: stores bad rows as Parquet with location and reason, and replays them after a fix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headrace.errors import DataError
from headrace.files import new_file, writing
from headrace.logs.casting import Mask
from headrace.logs.checks import BadRowPolicy, RowChecker, RowOrigin, columns_asked
from headrace.logs.files import LogFile, list_files
from headrace.logs.footers import Footer, iter_plain, open_parquet, read_footer
from headrace.logs.raw_rows import decode_rows, parse_row
from headrace.logs.schema import Schema
from headrace.logs.source import REJECT_SCHEMA, ROW_ID, SourceBatch
from headrace.messages import shorten_list

__all__ = ["ReplaySource", "read_rejects", "replay_source", "write_rejects"]

READ_ROWS = 8_192
"""Rows per batch when reading a whole quarantine."""

PLACE_AND_ROW = ["file", "row_group", "row", "raw"]
"""Columns needed to replay rows."""

BYTES_PER_VALUE = 16
"""Approximate Arrow bytes per value decoded from JSON, for the pipeline's memory estimate."""


def write_rejects(folder: str | Path, name: str, rejects: Sequence[pa.RecordBatch]) -> Path | None:
    """Write bad rows to `folder/name.parquet`, atomically.

    The caller chooses the name, so that a killed run that repeats its steps writes the same rows to the same file.

    Args:
        folder: The quarantine folder, created if needed.
        name: Name of the file without its suffix.
        rejects: Batches with `REJECT_SCHEMA`. If there are no rows, nothing is written, and an existing file of this
            name is removed.

    Returns:
        Path of the file, or None if there were no rows.
    """
    path = Path(folder) / f"{name}.parquet"
    table = pa.Table.from_batches(rejects, REJECT_SCHEMA)
    if not table.num_rows:
        path.unlink(missing_ok=True)
        return None
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as partial:
        pq.write_table(table, str(partial.absolute()), compression="zstd")
    return path


def read_rejects(path: str | Path) -> pa.Table:
    """Read all rows of a quarantine (a folder or one of its files), in natural order of the files; see `REJECT_SCHEMA`.

    Raises:
        ConfigError: The quarantine does not exist.
        DataError: A file is not a quarantine file.
    """
    batches = [
        batch for file in list_files(path) for batch in _batches(_checked_footer(file), REJECT_SCHEMA.names, READ_ROWS)
    ]
    return pa.Table.from_batches(batches, REJECT_SCHEMA)


def replay_source(
    path: str | Path,
    schema: Schema,
    *,
    columns: Sequence[str] | None = None,
    policy: BadRowPolicy | None = None,
    max_rows_per_batch: int = 8_192,
) -> ReplaySource:
    """Create a source that replays quarantined rows, after the schema was corrected or the files were edited.

    Rows keep their ids. Rows that are still bad are rejected again, with their old location and new reason.

    Args:
        path: A quarantine folder, or one of its files.
        schema: The (corrected) schema of the log.
        columns: Schema columns to read; None for all.
        policy: How to handle rows that are still bad.
        max_rows_per_batch: Maximum rows per batch.

    Raises:
        ConfigError: The quarantine does not exist, or a column is not in the schema.
        DataError: A file is not a quarantine file.
    """
    footers = [_checked_footer(file) for file in list_files(path)]
    return ReplaySource(footers, schema, columns=columns, policy=policy, max_rows_per_batch=max_rows_per_batch)


class ReplaySource:
    """Quarantined rows, one split per file; implements `headrace.logs.source.Source`. See `replay_source`."""

    def __init__(
        self,
        footers: Sequence[Footer],
        schema: Schema,
        *,
        columns: Sequence[str] | None,
        policy: BadRowPolicy | None,
        max_rows_per_batch: int,
    ) -> None:
        columns = columns_asked(schema, columns, policy, where="ReplaySource")
        self._footers = footers
        self._schema = schema
        self._max_rows = max_rows_per_batch
        policy = BadRowPolicy() if policy is None else policy
        self._policy = policy.policy
        self._checker = RowChecker(schema, columns, policy, self._first_types())

    @property
    def output_schema(self) -> pa.Schema:
        """Names and types of the batches: the columns asked for, then `ROW_ID`."""
        return self._checker.output_schema

    def __len__(self) -> int:
        return len(self._footers)

    def describe(self, split: int) -> str:
        """Describe a split: its quarantine file."""
        return str(self._footers[split].file.path)

    def num_rows(self, split: int) -> int:
        """Number of rows of a split."""
        return int(self._footers[split].metadata.num_rows)

    def estimate_bytes(self, split: int) -> int:
        """Estimate the bytes of a split's largest batch."""
        return min(self.num_rows(split), self._max_rows) * len(self._schema.columns) * BYTES_PER_VALUE

    def read(self, split: int) -> Iterator[SourceBatch]:
        """Yield the batches of one file, in order.

        Raises:
            DataError: The file is damaged, or a row is (still) bad and the policy is "fail".
        """
        for rejects in _batches(self._footers[split], PLACE_AND_ROW, self._max_rows):
            parsed = [parse_row(text) for text in rejects.column("raw").to_pylist()]
            unreadable = pa.array([row is None for row in parsed], pa.bool_())
            if unreadable.true_count:
                yield self._reject(split, rejects.filter(unreadable))
                rejects = rejects.filter(pc.invert(unreadable))
            start = 0
            for raw, row_ids in decode_rows((row for row in parsed if row is not None), self._schema.columns):
                places = rejects.slice(start, raw.num_rows)
                start += raw.num_rows
                origin = RowOrigin(
                    places.column("file").to_pylist(),
                    places.column("row_group").to_pylist(),
                    np.asarray(places.column("row").to_numpy(), dtype=np.int64),
                    row_ids,
                )
                yield self._check(raw, origin, places)

    def _check(self, raw: pa.RecordBatch, origin: RowOrigin, places: pa.RecordBatch) -> SourceBatch:
        """Check parsed rows; rows that are still bad keep their text, including columns outside of the schema."""
        masks: list[Mask] = []

        def rest_of(bad: Mask) -> dict[str, list[Any]]:
            masks.append(bad)
            return {}

        batch = self._checker.check(raw, origin, rest_of)
        if batch.rejects is None:
            return batch
        texts = places.column("raw").filter(pa.array(masks[0]))
        column = REJECT_SCHEMA.get_field_index("raw")
        return replace(batch, rejects=batch.rejects.set_column(column, REJECT_SCHEMA.field(column), texts))

    def _reject(self, split: int, rejects: pa.RecordBatch) -> SourceBatch:
        """Create a batch of rejects for rows whose JSON cannot be parsed."""
        reason = f"not a JSON object with an integer {ROW_ID}"
        if self._policy == "fail":
            first = rejects.slice(0, 1).to_pylist()[0]
            place = f"{first['file']}, row group {first['row_group']}, row {first['row']}"
            raise DataError(f"{self.describe(split)}: column raw of the row from {place}: {reason}")
        batch = pa.RecordBatch.from_pylist([], schema=self.output_schema)
        if self._policy == "drop":
            return SourceBatch(batch, rejects.num_rows, num_dropped=rejects.num_rows)
        columns = {
            **{name: rejects.column(name) for name in ("file", "row_group", "row", "raw")},
            "column": ["raw"] * rejects.num_rows,
            "reason": [reason] * rejects.num_rows,
        }
        return SourceBatch(batch, rejects.num_rows, rejects=pa.RecordBatch.from_pydict(columns, schema=REJECT_SCHEMA))

    def _first_types(self) -> pa.Schema:
        """Column types of the first row, the best that JSON allows."""
        for footer in self._footers:
            for rejects in _batches(footer, PLACE_AND_ROW, 1):
                row = parse_row(rejects.column("raw")[0].as_py())
                for raw, _ in decode_rows([] if row is None else [row], self._schema.columns):
                    return raw.schema
        return pa.schema([(name, pa.null()) for name in self._schema.columns])


def _batches(footer: Footer, names: list[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
    """Yield columns of a quarantine file, cast to `REJECT_SCHEMA` because editors may change types."""
    schema = pa.schema([REJECT_SCHEMA.field(name) for name in names], REJECT_SCHEMA.metadata)
    for row_group in range(footer.metadata.num_row_groups):
        with open_parquet(footer) as parquet:
            for batch in iter_plain(footer, parquet, row_group, names, batch_rows):
                arrays = [_typed(batch.column(field.name), field, footer) for field in schema]
                yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _typed(column: pa.Array, field: pa.Field, footer: Footer) -> pa.Array:
    try:
        return column.cast(field.type)
    except pa.ArrowException as error:
        raise DataError(
            f"{footer.file.path}: not a quarantine file: column {field.name} is {column.type}, expected {field.type}"
        ) from error


def _checked_footer(file: LogFile) -> Footer:
    footer = read_footer(file)
    missing = [name for name in REJECT_SCHEMA.names if name not in footer.schema.names]
    if missing:
        raise DataError(f"{file.path}: not a quarantine file: missing columns {shorten_list(missing)}")
    return footer
