"""Blocks of changed rows as Arrow record batches, for sending them from a shard to a consumer.

    table    int32, table number of the id
    id          int64
    weights     fixed_size_binary: D float32, the D uint16 of bf16 and fp16 rows, or D + 1 int8, little-endian
    slot.NAME   fixed_size_binary: the optimizer's state, float32
    version     int64
    frequency   int32

Columns after `id` are null in a block of tombstones. The metadata of a field names its element type; the metadata of
the batch holds the version of the table group.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.embeddings.changes.log import RowBlock

__all__ = ["block_schema", "pack_block", "unpack_block"]


def block_schema(columns: dict[str, npt.NDArray[Any]]) -> pa.Schema:
    """The schema of blocks with these columns: [R] or [R, width], of any dtype and R."""
    fields = [pa.field("table", pa.int32()), pa.field("id", pa.int64())]
    for name, column in columns.items():
        is_plain = column.ndim == 1
        kind = pa.from_numpy_dtype(column.dtype) if is_plain else pa.binary(column.dtype.itemsize * column.shape[1])
        fields.append(pa.field(name, kind, metadata=None if is_plain else {"dtype": column.dtype.str}))
    return pa.schema(fields)


def pack_block(block: RowBlock, schema: pa.Schema) -> tuple[pa.RecordBatch, bytes]:
    """Convert a block to a record batch and its metadata, without copying."""
    num_rows = len(block.ids)
    columns = [pa.array(block.tables), pa.array(block.ids)]
    for field in list(schema)[2:]:
        if block.is_tombstones:
            columns.append(pa.nulls(num_rows, field.type))
            continue
        column = np.ascontiguousarray(block.columns[field.name])
        buffers = [None, pa.py_buffer(column)]
        columns.append(pa.Array.from_buffers(field.type, num_rows, buffers))
    batch = pa.RecordBatch.from_arrays(columns, schema=schema)
    return batch, json.dumps({"version": block.version, "tombstones": block.is_tombstones}).encode()


def unpack_block(batch: pa.RecordBatch, metadata: bytes) -> RowBlock:
    """Convert a record batch and its metadata to a block, without copying."""
    about = json.loads(metadata)
    tables, ids = batch.column("table").to_numpy(), batch.column("id").to_numpy()
    columns: dict[str, npt.NDArray[Any]] = {}
    for field in [] if about["tombstones"] else list(batch.schema)[2:]:
        column = batch.column(field.name)
        if field.metadata is None:
            columns[field.name] = column.to_numpy()
            continue
        width, dtype = field.type.byte_width, np.dtype(field.metadata[b"dtype"].decode())
        raw = np.frombuffer(
            column.buffers()[1], dtype=np.uint8, count=len(column) * width, offset=column.offset * width
        )
        columns[field.name] = raw.view(dtype).reshape(len(column), -1)
    return RowBlock(about["version"], tables, ids, columns)
