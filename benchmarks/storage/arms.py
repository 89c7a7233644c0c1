"""The arms of `bench_storage.py`: a table of rows with optimizer state, read and updated in batches.

Each arm does the same work in a step: it reads the rows of the step, runs row-wise Adagrad on them, and writes them. A
key-value store has weights and state of a row in one value, and reads and writes a step's rows in one batch.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from headrace.embeddings import Keys, TableConfig, TableGroup
from headrace.embeddings.storage.mapped import MappedStorage
from headrace.embeddings.storage.protocol import RowLayout
from headrace.embeddings.storage.tiered import TieredStorage
from headrace.embeddings.tables.table_group import row_layout

__all__ = ["ARMS", "DIM", "RECORD_BYTES", "Arm", "Groups", "KeyValues"]

DIM = 32
RECORD_BYTES = 4 * DIM + 4
WINDOW = 16
"""Batches whose keys are known ahead."""

Int64s = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

TABLE = TableConfig(name="item", kind="hashed", embedding_dim=DIM, init_scale=0.01)


class Arm(Protocol):
    """A table."""

    def fill(self, first: int, last: int) -> None:
        """Train rows `first` to `last` - 1 for the first time."""

    def step(self, steps: Sequence[Int64s], number: int) -> None:
        """Make step `number` of a trace."""

    def counters(self) -> dict[str, int]:
        """Counts since the start, if the arm has some."""


def keys_of(rows: Int64s) -> Keys:
    return Keys(np.zeros(len(rows), np.int32), rows, np.ones(len(rows), np.int32))


class Groups:
    """Arms of headrace: a table group with a storage."""

    def __init__(self, folder: Path, num_rows: int, memory_bytes: int, *, kind: str) -> None:
        makers: dict[str, Any] = {
            "mapped": MappedStorage.within(folder),
            "tiered": TieredStorage.within(folder, memory_bytes),
        }
        options = {} if kind == "memory" else {"make_storage": makers[kind]}
        self.group = TableGroup([TABLE.model_copy(update={"num_embeddings": num_rows})], seed=0, **options)
        self._announced = 0
        self._gradients = np.full((1 << 16, DIM), 0.01, dtype=np.float32)
        self._fetched = np.zeros(num_rows + 1, dtype=np.bool_)
        self._num_needed = 0
        if kind == "tiered":
            self._watch_fetches()

    def fill(self, first: int, last: int) -> None:
        rows = np.arange(first, last)
        self.group.update(keys_of(rows), self._gradients[: len(rows)])

    def step(self, steps: Sequence[Int64s], number: int) -> None:
        if self.group.reads_ahead:
            self._announced = max(self._announced, number)
            while self._announced < min(number + WINDOW, len(steps)):
                if not self.group.announce(keys_of(steps[self._announced]), ahead=self._announced - number):
                    break
                self._announced += 1
        keys = keys_of(steps[number])
        self.group.read(keys)
        self.group.update(keys, self._gradients[: len(keys)])
        rows = steps[number] + 1  # row 0 of a group is the zero row
        self._num_needed += int(np.count_nonzero(self._fetched[rows]))
        self._fetched[rows] = False

    def restart(self) -> None:
        """Begin another trace."""
        self._announced = 0

    def counters(self) -> dict[str, int]:
        if not self.group.reads_ahead:
            return {}
        counters = self.group.storage.counters  # type: ignore[attr-defined]
        return {name: getattr(counters, name) for name in counters.__dataclass_fields__} | {"needed": self._num_needed}

    def _watch_fetches(self) -> None:
        """Note which rows were read, to count the reads that a step used: the least with these rows in memory."""
        storage: Any = self.group.storage
        fetch = storage._fetch

        def watched(rows: Int64s, **options: Any) -> bool:
            done: bool = fetch(rows, **options)
            if done:
                self._fetched[rows] = True
            return done

        storage._fetch = watched


class KeyValues:
    """Base of the arms that keep records in a key-value store."""

    def __init__(self, folder: Path, num_rows: int, memory_bytes: int) -> None:
        self._layout: RowLayout = row_layout([TABLE.model_copy(update={"num_embeddings": num_rows})], 0)
        self._gradients = np.full((1 << 16, DIM), 0.01, dtype=np.float32)
        self._steps = 0
        self._open(folder, memory_bytes)

    def fill(self, first: int, last: int) -> None:
        rows = np.arange(first, last)
        records = np.zeros((len(rows), RECORD_BYTES), dtype=np.uint8)
        records[:, : 4 * DIM] = self._layout.first_values.stored(keys_of(rows), DIM).view(np.uint8)
        self._update(rows, records)

    def step(self, steps: Sequence[Int64s], number: int) -> None:
        rows = steps[number]
        self._update(rows, self._read(rows))

    def restart(self) -> None:
        """Begin another trace."""

    def counters(self) -> dict[str, int]:
        return {}

    def _update(self, rows: Int64s, records: Bytes) -> None:
        self._steps += 1
        keys = keys_of(rows)
        weights = np.zeros((len(rows) + 1, DIM), dtype=np.float32)
        state = np.zeros((len(rows) + 1, 1), dtype=np.float32)
        weights[1:] = records[:, : 4 * DIM].view(np.float32)
        state[1:] = records[:, 4 * DIM :].view(np.float32)
        places = np.arange(1, len(rows) + 1)
        where = weights, state, places, keys.tables, keys.ids
        self._layout.optimizer.apply(*where, self._gradients[: len(rows)], self._steps, self._layout.rounding(1))
        data = np.concatenate([weights[1:].view(np.uint8), state[1:].view(np.uint8)], axis=1).tobytes()
        self._write(rows, [data[at : at + RECORD_BYTES] for at in range(0, len(data), RECORD_BYTES)])

    def _open(self, folder: Path, memory_bytes: int) -> None:
        raise NotImplementedError

    def _read(self, rows: Int64s) -> Bytes:
        raise NotImplementedError

    def _write(self, rows: Int64s, values: list[bytes]) -> None:
        raise NotImplementedError


def _big_endian(rows: Int64s) -> list[bytes]:
    data = rows.astype(">i8").tobytes()
    return [data[at : at + 8] for at in range(0, len(data), 8)]


def _records(values: Sequence[bytes]) -> Bytes:
    return np.frombuffer(b"".join(values), dtype=np.uint8).reshape(len(values), RECORD_BYTES)


class RocksDB(KeyValues):
    """RocksDB by rocksdict: multi-get, write batches without a log, a block cache of half the memory, bloom filters."""

    def _open(self, folder: Path, memory_bytes: int) -> None:
        import rocksdict

        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        options.increase_parallelism(2)
        options.set_compression_type(rocksdict.DBCompressionType.none())
        options.set_write_buffer_size(max(1 << 20, memory_bytes // 8))
        table = rocksdict.BlockBasedOptions()
        table.set_block_cache(rocksdict.Cache(memory_bytes // 2))
        table.set_block_size(4096)
        table.set_bloom_filter(10, False)
        options.set_block_based_table_factory(table)
        self._rocksdict = rocksdict
        self._db = rocksdict.Rdict(str(folder / "rocksdb"), options)
        self._options = rocksdict.WriteOptions()
        self._options.disable_wal = True

    def _read(self, rows: Int64s) -> Bytes:
        return _records(self._db[_big_endian(rows)])

    def _write(self, rows: Int64s, values: list[bytes]) -> None:
        batch = self._rocksdict.WriteBatch(raw_mode=True)
        for key, value in zip(_big_endian(rows), values, strict=True):
            batch.put(key, value)
        self._db.write(batch, self._options)


class LMDB(KeyValues):
    """LMDB: one transaction a step, multi-get, no syncing, a writable map without reading ahead."""

    def _open(self, folder: Path, memory_bytes: int) -> None:
        import lmdb

        options = {"sync": False, "metasync": False, "writemap": True, "map_async": True, "readahead": False}
        self._env = lmdb.open(str(folder / "lmdb"), map_size=16 << 30, lock=False, **options)

    def _read(self, rows: Int64s) -> Bytes:
        with self._env.begin() as transaction, transaction.cursor() as cursor:
            return _records([value for _, value in cursor.getmulti(_big_endian(rows))])

    def _write(self, rows: Int64s, values: list[bytes]) -> None:
        with self._env.begin(write=True) as transaction, transaction.cursor() as cursor:
            cursor.putmulti(list(zip(_big_endian(rows), values, strict=True)))


class SQLite(KeyValues):
    """SQLite: one query and one transaction a step, no journal, no syncing, a page cache of half the memory."""

    def _open(self, folder: Path, memory_bytes: int) -> None:
        self._db = sqlite3.connect(folder / "sqlite", isolation_level=None)
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "locking_mode=EXCLUSIVE", "temp_store=MEMORY"):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.execute(f"PRAGMA cache_size=-{memory_bytes // 2048}")
        self._db.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, record BLOB)")

    def _read(self, rows: Int64s) -> Bytes:
        query = "SELECT record FROM json_each(?) AS wanted CROSS JOIN rows ON rows.id = wanted.value"
        return _records([record for (record,) in self._db.execute(query, (json.dumps(rows.tolist()),))])

    def _write(self, rows: Int64s, values: list[bytes]) -> None:
        self._db.execute("BEGIN")
        self._db.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?)", zip(rows.tolist(), values, strict=True))
        self._db.execute("COMMIT")


ARMS: dict[str, Any] = {
    "memory": partial(Groups, kind="memory"),
    "tiered": partial(Groups, kind="tiered"),
    "mapped": partial(Groups, kind="mapped"),
    "RocksDB": RocksDB,
    "LMDB": LMDB,
    "SQLite": SQLite,
}
