"""States of keys as Arrow record batches, for moving rows between a shard and a trainer.

A batch has one row and a column of bytes for each array, because the arrays have different lengths:

    ids        int64, the keys' ids; only from the trainer, the shard's answer is about the ids asked for
    places     int32, positions of the keys that have a row; nothing if all have one
    weights    D float32 a row, or the D uint16 of bf16 and fp16 rows, or the D + 1 int8 of int8 rows
    slot.NAME  float32, the optimizer's state
    version    int64
    frequency  int32
    waiting    int32, positions of the keys that were seen, but have no row yet
    sightings  int64
    last_seen  int64

All numbers are little-endian. An int64 array has four bytes per number instead of eight if all numbers fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.embeddings.shards.table_group import TableGroupSpec
from headrace.embeddings.storage.row_formats import storage_dtype
from headrace.embeddings.tables.key_states import KeyStates
from headrace.embeddings.tables.table_group import row_layout
from headrace.errors import ShardError

__all__ = ["IDS_SCHEMA", "StateWire", "pack_ids_only", "unpack_ids_only"]

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
Int64s = npt.NDArray[np.int64]

NOTHING: Int64s = np.empty(0, dtype=np.int64)


def _schema(names: Sequence[str]) -> pa.Schema:
    return pa.schema([pa.field(name, pa.large_binary(), nullable=False) for name in names])


IDS_SCHEMA = _schema(["ids"])
COUNTS = ("version", "frequency")
WAITING = ("waiting", "sightings", "last_seen")


def pack_ids_only(ids: Int64s) -> pa.RecordBatch:
    """A batch of the ids [K] whose states are asked for."""
    return pa.RecordBatch.from_arrays([_as_bytes(_narrow(ids))], schema=IDS_SCHEMA)


def unpack_ids_only(batch: pa.RecordBatch, num_keys: int) -> Int64s:
    """The ids of `pack_ids_only`.

    Raises:
        ShardError: The batch does not have so many.
    """
    return _wide(_columns_of(batch), "ids", num_keys)


@dataclass(frozen=True)
class StateWire:
    """Packs and unpacks the states of keys of one table group."""

    spec: TableGroupSpec

    @cached_property
    def fields(self) -> dict[str, tuple[Any, int]]:
        """Dtype and numbers per row of the columns of rows."""
        layout = row_layout(self.spec.tables, self.spec.seed)
        weights = {"weights": (storage_dtype(layout.row_format), layout.width)}
        slots = layout.slot_columns(np.empty((0, layout.optimizer.state_width), dtype=np.float32))
        return weights | {name: (np.float32, slot.shape[1]) for name, slot in slots.items()}

    def schema(self, *, with_ids: bool) -> pa.Schema:
        """The schema of a batch."""
        return _schema([*(["ids"] if with_ids else []), "places", *self.fields, *COUNTS, *WAITING])

    def pack(self, states: KeyStates, num_keys: int, ids: Int64s | None = None) -> pa.RecordBatch:
        """A batch of the states of some keys [K], without copying rows; with the keys' ids if given."""
        arrays: list[Array] = [] if ids is None else [_narrow(ids)]
        every_key = len(states.places) == num_keys
        arrays.append(NOTHING if every_key else states.places.astype(np.int32))
        arrays += [states.columns[name] for name in self.fields]
        arrays += [_narrow(states.columns["version"]), states.columns["frequency"]]
        arrays += [states.waiting.astype(np.int32), _narrow(states.sightings), _narrow(states.last_seen)]
        columns = [_as_bytes(array) for array in arrays]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema(with_ids=ids is not None))

    def unpack(self, batch: pa.RecordBatch, num_keys: int) -> tuple[Int64s, KeyStates]:
        """The ids, none if the batch has none, and the states of `num_keys` keys; copies only int64 arrays.

        Raises:
            ShardError: A column does not have the bytes that the others require.
        """
        found = _columns_of(batch)
        ids = _wide(found, "ids", num_keys) if "ids" in found else NOTHING
        frequency, waiting = (_numbers(found, name, np.int32) for name in ("frequency", "waiting"))
        num_rows, places = len(frequency), np.arange(num_keys)
        if num_rows + len(waiting) > num_keys:
            raise ShardError(f"states: given {num_rows + len(waiting)}, expected at most {num_keys}, one for each key")
        if num_rows < num_keys:
            places = _numbers(found, "places", np.int32, num_rows).astype(np.int64)
        columns = {
            name: _numbers(found, name, dtype, num_rows * width).reshape(num_rows, width)
            for name, (dtype, width) in self.fields.items()
        }
        columns |= {"version": _wide(found, "version", num_rows), "frequency": frequency}
        counts = (_wide(found, name, len(waiting)) for name in ("sightings", "last_seen"))
        return ids, KeyStates(places, columns, waiting.astype(np.int64), *counts)


def _columns_of(batch: pa.RecordBatch) -> dict[str, Bytes]:
    if batch.num_rows != 1:
        raise ShardError(f"states: given {batch.num_rows} rows, expected one with all arrays")
    return {name: _bytes_of(batch.column(name)) for name in batch.schema.names}


def _narrow(numbers: Int64s) -> Array:
    """The same numbers in four bytes each if they fit."""
    fits = not len(numbers) or (numbers.min() >= -(1 << 31) and numbers.max() < 1 << 31)
    return numbers.astype(np.int32) if fits else numbers


def _wide(found: dict[str, Bytes], name: str, count: int) -> Int64s:
    """An int64 array of `count` numbers, sent with four or eight bytes each."""
    width = len(found[name]) // max(count, 1)
    if len(found[name]) != count * width or (count and width not in (4, 8)):
        raise ShardError(f"{name}: given {len(found[name])} bytes, expected {4 * count} or {8 * count}")
    numbers: Int64s = found[name].view(np.int32 if width == 4 else np.int64).astype(np.int64)
    return numbers


def _as_bytes(array: Array) -> pa.Array:
    array = np.ascontiguousarray(array)
    ends = pa.py_buffer(np.array([0, array.nbytes], dtype=np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, pa.py_buffer(array)])


def _bytes_of(column: pa.Array) -> Bytes:
    return np.frombuffer(column[0].as_buffer(), dtype=np.uint8)


def _numbers(found: dict[str, Bytes], name: str, dtype: Any, count: int | None = None) -> Array:
    """An array of a column; its length must be `count`, if given."""
    size, given = np.dtype(dtype).itemsize, len(found[name])
    if given % size or (count is not None and given != count * size):
        wanted = f"a multiple of {size}" if count is None else f"{count * size}"
        raise ShardError(f"{name}: given {given} bytes, expected {wanted}")
    return found[name].view(dtype)
