"""`RowOrder`: the order of a clustered log, from sort keys of all rows, sorted by DuckDB in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.compiling import kernel
from headrace.errors import MissingExtra
from headrace.files import writing
from headrace.logs.canonical import canonical
from headrace.logs.casting import cast_times, to_time_us
from headrace.logs.clustering.config import ClusterConfig
from headrace.logs.clustering.payload import widened
from headrace.logs.footers import Footer, iter_plain, open_parquet
from headrace.logs.inspection.hashing import NULL_HASH, hash_column
from headrace.logs.keyed_random import derive, mix
from headrace.logs.schema import Schema
from headrace.logs.source import FILE_ROW_BITS

__all__ = ["KEY_SCHEMA", "RowOrder", "read_keys"]

BATCH_ROWS = 65_536

KEY_SCHEMA = pa.schema([("row_id", pa.int64()), ("session", pa.uint64()), ("time", pa.int64()), ("slot", pa.int64())])
"""Sort keys of a row: its time slot, the hash of its session (or user), its time in microseconds, its position."""

_FIRST_TIME = np.iinfo(np.int64).min

_BY_COLUMN = "SELECT row_id, session, time, slot, row_id AS name FROM keys"

# Split a user's rows at long gaps; a session is named by the id of its first row.
_BY_GAP = """
SELECT row_id, hash(session, number) AS session, time, slot,
    first_value(row_id) OVER (PARTITION BY session, number ORDER BY time, row_id) AS name
FROM (
    SELECT *, sum(is_new) OVER (PARTITION BY session ORDER BY time, row_id ROWS UNBOUNDED PRECEDING) AS number
    FROM (
        SELECT *, CASE WHEN time - lag(time) OVER (PARTITION BY session ORDER BY time, row_id) <= {gap_us}
            THEN 0 ELSE 1 END AS is_new
        FROM keys
    )
)
"""

# Sessions in order of their first row, which keeps the file as close to time order as sessions allow.
_ORDER = """
CREATE TABLE ordered AS
SELECT sessions.* FROM sessions
JOIN (SELECT slot, session, min(time) AS start FROM sessions GROUP BY slot, session) AS starts USING (slot, session)
ORDER BY slot, start, session, time, row_id
"""


class RowOrder:
    """The destination of each row of a window: sessions adjacent, each in time order.

    Args:
        keys: Batches with `KEY_SCHEMA`, in order of `row_id`.
        gap_us: Gap that starts a new session of a user; None if `session` is a session id.
        memory_bytes: DuckDB's memory limit, beyond which it uses the folder.
        folder: Folder for DuckDB's temporary files.

    Raises:
        MissingExtra: DuckDB is not installed.
        StorageError: There is no space for temporary files.
    """

    def __init__(self, keys: Iterator[pa.RecordBatch], *, gap_us: int | None, memory_bytes: int, folder: Path) -> None:
        try:
            import duckdb
        except ImportError as error:
            raise MissingExtra("duckdb", "lake") from error
        limits: dict[str, Any] = {
            "memory_limit": f"{memory_bytes >> 20}MiB",
            "temp_directory": str(folder),
            "threads": 2,
        }
        self._folder = folder
        self._connection: Any = duckdb.connect(config=limits)
        try:
            self._run("CREATE TABLE keys (row_id BIGINT, session UBIGINT, time BIGINT, slot BIGINT)")
            for batch in keys:  # one by one, because DuckDB would wrap errors raised by a stream
                self._connection.register("batch", pa.Table.from_batches([batch]))
                self._run("INSERT INTO keys SELECT * FROM batch")
                self._connection.unregister("batch")
            self._run(f"CREATE TABLE sessions AS {_BY_COLUMN if gap_us is None else _BY_GAP.format(gap_us=gap_us)}")
            self._run("DROP TABLE keys")
            self._run(_ORDER)
            with writing(folder):
                counted = self._connection.execute("SELECT count(*), count(DISTINCT (slot, session)) FROM ordered")
                self.num_rows, self.num_sessions = counted.fetchone() or (0, 0)
            self._run("DROP TABLE sessions")
        except BaseException:
            self.close()
            raise

    def destinations(self) -> Iterator[pa.RecordBatch]:
        """Yield `row_id` (ascending), `destination` (0, 1, ...), `session` (different from its neighbours) and
        `name`."""
        query = "SELECT row_id, rowid AS destination, session, name FROM ordered ORDER BY row_id"
        with writing(self._folder):
            found = self._connection.sql(query)
            # The method has a different name in DuckDB 1.
            to_reader = found.to_arrow_reader if hasattr(found, "to_arrow_reader") else found.fetch_arrow_reader
            reader = to_reader(BATCH_ROWS)
        while (batch := self._next(reader)) is not None:
            yield batch

    def close(self) -> None:
        """Release memory and temporary files."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, query: str) -> None:
        with writing(self._folder):  # only running out of space for temporary files can fail
            self._connection.execute(query)

    def _next(self, reader: Any) -> pa.RecordBatch | None:
        with writing(self._folder):
            return next(reader, None)


def read_keys(
    footers: Sequence[tuple[int, Footer]], schema: Schema, key: pa.Field, config: ClusterConfig
) -> Iterator[pa.RecordBatch]:
    """Yield the sort keys of all rows whose sessions are in the sample.

    Args:
        footers: Files with their numbers, in order.
        schema: Schema of the log; without a timestamp rows keep the file order.
        key: Session or user column, with the common type of all files.
        config: Settings of sample and time slots.

    Raises:
        DataError: A file is damaged, or has a key that the common type cannot represent.
    """
    clock = schema.timestamp
    names = list(dict.fromkeys([key.name, *([clock.name] if clock is not None else [])]))
    for number, footer in footers:
        row = 0
        for row_group in range(footer.metadata.num_row_groups):
            with open_parquet(footer) as parquet:
                for batch in iter_plain(footer, parquet, row_group, names, BATCH_ROWS):
                    row_ids = (np.int64(number) << FILE_ROW_BITS) | np.arange(row, row + batch.num_rows)
                    row += batch.num_rows
                    times = np.zeros(batch.num_rows, dtype=np.int64)
                    if clock is not None:
                        ticks, _ = cast_times(batch.column(clock.name), clock.unit)
                        times = to_time_us(ticks, clock.unit)
                        times[ticks.is_null().to_numpy(zero_copy_only=False)] = _FIRST_TIME
                    where = f"{footer.file.path}, row group {row_group}"
                    hashes = hash_column(canonical(widened(batch.column(key.name), key, where)).values)
                    assert hashes is not None
                    yield _keys_of(hashes, row_ids, times, config)


def _keys_of(
    hashes: npt.NDArray[np.uint64], row_ids: npt.NDArray[np.int64], times: npt.NDArray[np.int64], config: ClusterConfig
) -> pa.RecordBatch:
    slots = np.zeros(len(times), dtype=np.int64)
    if config.every_s is not None:
        slots = times // (config.every_s * 1_000_000)
    sessions, kept = np.empty_like(hashes), np.empty(len(hashes), dtype=np.bool_)
    limit = np.uint64(min(int(config.sample * 2.0**64), 2**64 - 1))
    _name_sessions(hashes, row_ids, slots, np.uint64(config.seed), limit, config.sample >= 1.0, sessions, kept)
    batch = pa.RecordBatch.from_arrays([pa.array(c) for c in (row_ids, sessions, times, slots)], schema=KEY_SCHEMA)
    return batch if kept.all() else batch.filter(pa.array(kept))


@kernel()
def _name_sessions(
    hashes: npt.NDArray[np.uint64],
    row_ids: npt.NDArray[np.int64],
    slots: npt.NDArray[np.int64],
    seed: np.uint64,
    limit: np.uint64,
    keep_all: bool,
    sessions: npt.NDArray[np.uint64],
    kept: npt.NDArray[np.bool_],
) -> None:
    """Select the sample by session, then distinguish slots; a row without a session is a session of its own."""
    for i in range(len(hashes)):
        name = hashes[i]
        if name == NULL_HASH:
            name = derive(NULL_HASH, row_ids[i])
        kept[i] = keep_all or mix(name ^ mix(seed + NULL_HASH)) < limit
        sessions[i] = derive(name, slots[i])
