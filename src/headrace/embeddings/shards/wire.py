"""Messages between trainers and shards: Arrow schemas and JSON headers; see `docs/shard-protocol.md`."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, field
from typing import Annotated, Any, Literal, Self, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from headrace.embeddings.keys import Keys
from headrace.embeddings.shards.precision import PRECISIONS, Precision, row_bytes
from headrace.embeddings.shards.requests import (
    MAX_STEP,
    MAX_TABLES,
    MAX_TRAINERS,
    PROTOCOL,
    Name,
    Step,
    Trainer,
    check_protocol,
    parse,
)
from headrace.errors import ShardError
from headrace.messages import shorten

__all__ = [
    "PROTOCOL",
    "EvictHeader",
    "FetchHeader",
    "PutHeader",
    "ReadHeader",
    "ReplyHeader",
    "StreamHeader",
    "UpdateHeader",
    "keys_of",
    "pack_ids",
    "pack_rows",
    "read_keys",
    "read_rows",
    "read_schema",
    "rows_schema",
    "update_schema",
]

MAX_BATCH_ROWS = (1 << 31) - 1
"""Maximum number of rows in a trainer's batch."""

CHECKED = ConfigDict(strict=True, extra="forbid")

KeysPerTable = Annotated[list[Annotated[int, Field(ge=0, lt=1 << 31)]], Field(max_length=MAX_TABLES)]
"""Keys of each table."""

Call = Literal["read", "update", "evict", "fetch", "put"]
Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]


class _Header:
    """Base of headers, sent as JSON."""

    def to_json(self) -> bytes:
        """Encode as JSON bytes."""
        return json.dumps(asdict(self), separators=(",", ":")).encode()  # type: ignore[call-overload]

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Decode `to_json`.

        Raises:
            ShardError: The data is invalid; the text names the first wrong field.
        """
        header: Self = parse(cls.__name__, _bytes_of(data), _reader(cls))  # type: ignore[arg-type]
        return header


def _bytes_of(data: Any) -> bytes:
    return b"" if data is None else bytes(data)


@functools.cache
def _reader(header: type) -> Callable[[bytes], Any]:
    return TypeAdapter(header).validate_json


@dataclass(frozen=True, config=CHECKED)
class StreamHeader(_Header):
    """Header that opens a stream of requests of one kind.

    Attributes:
        protocol: Protocol version, `PROTOCOL`.
        call: "read", "update", "evict", "fetch" or "put".
        session: Session, from the answer to `open`.
        table_group: Name of the table group.
        trainer: Number of the trainer.
        precision: Precision of rows (read) or gradients (update); ignored by other calls.
        client: Random secret name of the client process; None to use the connection's address.
    """

    protocol: int
    call: str
    session: Name
    table_group: Name
    trainer: Trainer
    precision: str
    client: Name | None = None

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """See `_Header.from_json`; checks the protocol version first."""
        check_protocol(cls.__name__, _bytes_of(data))
        return super().from_json(data)

    def check(self) -> tuple[Call, Precision]:
        """Check and return call and precision.

        Raises:
            ShardError: The call or the precision is unknown.
        """
        if self.call not in get_args(Call):
            raise ShardError(f"call {shorten(repr(self.call))}: expected one of: {', '.join(get_args(Call))}")
        if self.precision not in PRECISIONS:
            raise ShardError(f"precision {shorten(repr(self.precision))}: expected one of: {', '.join(PRECISIONS)}")
        return self.call, self.precision  # type: ignore[return-value]


@dataclass(frozen=True, config=CHECKED)
class ReadHeader(_Header):
    """Header of a read, sent with its ids.

    Attributes:
        after: Step that must be applied before the read.
        seen: Whether an update of these keys follows; used if ids are sent without counts.
        keys_per_table: Number of keys of each table, in table order.
    """

    after: Annotated[int, Field(ge=-MAX_STEP, le=MAX_STEP)]
    seen: bool
    keys_per_table: KeysPerTable


@dataclass(frozen=True, config=CHECKED)
class UpdateHeader(_Header):
    """Header of an update, sent with its gradients.

    Attributes:
        step: Number of the step.
        num_rows: Number of rows in the trainer's batch.
        keys_per_table: Number of keys of each table, in table order.
        lr_factor: Factor of the learning rates in this step; the shard uses trainer 0's.
    """

    step: Annotated[int, Field(ge=1, le=MAX_STEP)]
    num_rows: Annotated[int, Field(ge=0, le=MAX_BATCH_ROWS)]
    keys_per_table: KeysPerTable
    lr_factor: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0


@dataclass(frozen=True, config=CHECKED)
class EvictHeader(_Header):
    """Header of an eviction, sent with its ids.

    Attributes:
        step: Step after which the eviction is due, before the next.
        number: Number of evictions of this trainer in the session, including this one.
        keys_per_table: Number of keys of each table, in table order.
    """

    step: Annotated[int, Field(ge=0, le=MAX_STEP)]
    number: Annotated[int, Field(ge=1, le=MAX_STEP)]
    keys_per_table: KeysPerTable


@dataclass(frozen=True, config=CHECKED)
class FetchHeader(_Header):
    """Header of a request for the states of keys, sent with their ids.

    Attributes:
        keys_per_table: Number of keys of each table, in table order.
        after: For each trainer, the mark that its puts must have reached before the states are read; nothing to read
            them at once.
    """

    keys_per_table: KeysPerTable
    after: Annotated[list[Step], Field(max_length=MAX_TRAINERS)] = field(default_factory=list)


@dataclass(frozen=True, config=CHECKED)
class PutHeader(_Header):
    """Header of the states of keys that a trainer has trained on and returns.

    Attributes:
        step: Last step that the trainer has made; earlier updates of these keys are in their states.
        version: Version of the table group after this step.
        number: Number of puts of this trainer in the session, including this one.
        mark: What fetches of other trainers wait for; it never decreases.
        keys_per_table: Number of keys of each table, in table order.
    """

    step: Step
    version: Step
    number: Annotated[int, Field(ge=1, le=MAX_STEP)]
    mark: Step
    keys_per_table: KeysPerTable


@dataclass(frozen=True, config=CHECKED)
class ReplyHeader(_Header):
    """Header of every answer.

    Attributes:
        held_us: Time that the request waited for other trainers, in microseconds.
        work_us: Processing time in microseconds.
        applied: Number of the last applied step.
        freed: Number of rows freed by an eviction.
    """

    held_us: Step
    work_us: Step
    applied: Step
    freed: Step = 0


ID = pa.field("id", pa.int64(), nullable=False)
COUNT = pa.field("count", pa.int32(), nullable=False)


def rows_schema(precision: Precision, dim: int) -> pa.Schema:
    """Schema of read rows."""
    row = [pa.field("row", pa.binary(row_bytes(precision, dim)), nullable=False)]
    return pa.schema(row + ([pa.field("scale", pa.float32(), nullable=False)] if precision == "int8" else []))


def read_schema(*, with_counts: bool) -> pa.Schema:
    """Schema of the ids of a read, with counts if tables admit ids at a later occurrence than the first."""
    return pa.schema([ID, COUNT] if with_counts else [ID])


def update_schema(precision: Precision, dim: int) -> pa.Schema:
    """Schema of ids, counts and gradients of an update."""
    return pa.schema([ID, COUNT, *rows_schema(precision, dim)])


def pack_ids(keys: Keys, *, with_counts: bool) -> pa.RecordBatch:
    """Pack the ids of a read, without copying."""
    columns = [pa.array(keys.ids), pa.array(keys.counts)]
    return pa.RecordBatch.from_arrays(columns[: 1 + with_counts], schema=read_schema(with_counts=with_counts))


def pack_rows(keys: Keys | None, data: Bytes, scales: Float32s, schema: pa.Schema) -> pa.RecordBatch:
    """Pack encoded rows (uint8 [U, bytes]), after their keys in an update, without copying."""
    width = schema.field("row").type
    columns = [] if keys is None else [pa.array(keys.ids), pa.array(keys.counts)]
    columns.append(pa.Array.from_buffers(width, len(data), [None, pa.py_buffer(np.ascontiguousarray(data))]))
    if "scale" in schema.names:
        columns.append(pa.array(scales))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def read_keys(batch: pa.RecordBatch, keys_per_table: Sequence[int], num_tables: int, *, seen: bool = True) -> Keys:
    """Unpack the keys of a request whose schema has been checked.

    Ids and counts are copied, because Arrow's memory is read-only: numba compiles another variant of every kernel for
    read-only arrays.

    Args:
        batch: Ids, and optionally their counts.
        keys_per_table: Number of keys of each table.
        num_tables: Number of tables in the group.
        seen: Whether ids without counts count as seen once.

    Raises:
        ShardError: The numbers do not match the ids.
    """
    ids = batch.column("id").to_numpy().copy()
    has_counts = "count" in batch.schema.names
    counts = batch.column("count").to_numpy().copy() if has_counts else np.full(len(ids), int(seen), dtype=np.int32)
    return keys_of(ids, keys_per_table, num_tables, counts)


def keys_of(ids: Int64s, keys_per_table: Sequence[int], num_tables: int, counts: Any = None) -> Keys:
    """Keys of ids in table order.

    Args:
        ids: int64 [U].
        keys_per_table: Number of keys of each table.
        num_tables: Number of tables in the group.
        counts: int32 [U]; None for zeros.

    Raises:
        ShardError: The numbers do not match the ids.
    """
    sizes = np.array(keys_per_table, dtype=np.int64)
    if len(sizes) != num_tables or int(sizes.sum()) != len(ids):
        raise ShardError(
            f"keys_per_table: {len(sizes)} tables with {int(sizes.sum())} keys in all, "
            f"expected {num_tables} tables and {len(ids)} keys"
        )
    tables = np.repeat(np.arange(num_tables, dtype=np.int32), sizes)
    return Keys(tables, ids, np.zeros(len(ids), dtype=np.int32) if counts is None else counts)


def read_rows(batch: pa.RecordBatch) -> tuple[Bytes, Float32s]:
    """Unpack encoded rows uint8 [U, bytes] and scales, without copying."""
    column = batch.column("row")
    width = column.type.byte_width
    data = np.frombuffer(column.buffers()[1], dtype=np.uint8, count=len(column) * width, offset=column.offset * width)
    has_scale = "scale" in batch.schema.names
    scales = batch.column("scale").to_numpy() if has_scale else np.empty(0, dtype=np.float32)
    return data.reshape(len(column), width), scales
