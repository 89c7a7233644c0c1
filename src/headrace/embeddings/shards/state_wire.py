"""States of keys as Arrow record batches, for moving rows between a shard and a trainer.

A batch has one row and a column of bytes for each array, because the arrays have different lengths:

    ids        int64, the keys' ids; only from the trainer, the shard's answer is about the ids asked for
    places     int32, positions of the keys that have a row
    weights    D float32 a row, or the D uint16 of bf16 and fp16 rows
    slot.NAME  float32, the optimizer's state
    version    int64
    frequency  int32
    waiting    int32, positions of the keys that were seen, but have no row yet
    sightings  int64
    last_seen  int64

All numbers are little-endian.
"""

from __future__ import annotations

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

__all__ = ["StateWire"]

Array = npt.NDArray[Any]

COUNTS = {"version": np.int64, "frequency": np.int32}
WAITING = {"waiting": np.int32, "sightings": np.int64, "last_seen": np.int64}


@dataclass(frozen=True)
class StateWire:
    """Packs and unpacks the states of keys of one table group."""

    spec: TableGroupSpec

    @cached_property
    def fields(self) -> dict[str, tuple[Any, int]]:
        """Dtype and numbers per row of the columns of rows."""
        layout = row_layout(self.spec.tables, self.spec.seed)
        weights = {"weights": (storage_dtype(layout.row_format), layout.embedding_dim)}
        slots = layout.slot_columns(np.empty((0, layout.optimizer.state_width), dtype=np.float32))
        return weights | {name: (np.float32, slot.shape[1]) for name, slot in slots.items()}

    def schema(self, *, with_ids: bool) -> pa.Schema:
        """The schema of a batch."""
        names = ["ids"] if with_ids else []
        names += ["places", *self.fields, *COUNTS, *WAITING]
        return pa.schema([pa.field(name, pa.large_binary(), nullable=False) for name in names])

    def pack(self, states: KeyStates, ids: npt.NDArray[np.int64] | None = None) -> pa.RecordBatch:
        """A batch of the states, without copying rows; with the keys' ids if given."""
        arrays: list[Array] = [] if ids is None else [ids]
        arrays.append(states.places.astype(np.int32))
        arrays += [states.columns[name] for name in (*self.fields, *COUNTS)]
        arrays += [states.waiting.astype(np.int32), states.sightings, states.last_seen]
        columns = [_as_bytes(array) for array in arrays]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema(with_ids=ids is not None))

    def unpack(self, batch: pa.RecordBatch) -> tuple[npt.NDArray[np.int64], KeyStates]:
        """The ids, none if the batch has none, and the states, without copying.

        Raises:
            ShardError: A column does not have the bytes that the others require.
        """
        if batch.num_rows != 1:
            raise ShardError(f"states: given {batch.num_rows} rows, expected one with all arrays")
        found = {name: _bytes_of(batch.column(name)) for name in batch.schema.names}
        ids = _numbers(found, "ids", np.int64) if "ids" in found else np.empty(0, dtype=np.int64)
        places, waiting = _numbers(found, "places", np.int32), _numbers(found, "waiting", np.int32)
        columns = {
            name: _numbers(found, name, dtype, len(places) * width).reshape(len(places), width)
            for name, (dtype, width) in self.fields.items()
        }
        columns |= {name: _numbers(found, name, dtype, len(places)) for name, dtype in COUNTS.items()}
        sightings, last_seen = (_numbers(found, name, np.int64, len(waiting)) for name in ("sightings", "last_seen"))
        return ids, KeyStates(places.astype(np.int64), columns, waiting.astype(np.int64), sightings, last_seen)


def _as_bytes(array: Array) -> pa.Array:
    array = np.ascontiguousarray(array)
    ends = pa.py_buffer(np.array([0, array.nbytes], dtype=np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, pa.py_buffer(array)])


def _bytes_of(column: pa.Array) -> npt.NDArray[np.uint8]:
    return np.frombuffer(column[0].as_buffer(), dtype=np.uint8)


def _numbers(found: dict[str, npt.NDArray[np.uint8]], name: str, dtype: Any, count: int | None = None) -> Array:
    """An array of a column; its length must be `count`, if given."""
    size, given = np.dtype(dtype).itemsize, len(found[name])
    if given % size or (count is not None and given != count * size):
        wanted = f"a multiple of {size}" if count is None else f"{count * size}"
        raise ShardError(f"{name}: given {given} bytes, expected {wanted}")
    return found[name].view(dtype)
