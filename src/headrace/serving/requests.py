"""`RequestReader`: rows from the body of a request, checked as those of logs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import pyarrow as pa

from headrace.errors import HeadraceError
from headrace.features import FeaturePlan
from headrace.logs.schema import Schema
from headrace.logs.source import ROW_ID
from headrace.messages import shorten_list

__all__ = ["BadRequest", "RequestReader"]


class BadRequest(HeadraceError):
    """A request that cannot be answered.

    Attributes:
        status: HTTP status.
    """

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


class RequestReader:
    """Reads rows from bodies. Thread-safe.

    Args:
        plan: The feature plan, without labels.
        most_records: Maximum number of records of a request.
    """

    def __init__(self, plan: FeaturePlan, *, most_records: int = 10_000) -> None:
        names = tuple(name for name in plan.columns if name != ROW_ID)
        self._known = frozenset(plan.schema.columns)
        self._row = pa.struct([(name, _json_type(plan.schema, name)) for name in names])
        self._most_records = most_records

    def records(self, body: bytes) -> pa.RecordBatch:
        """Rows of JSON: `{"records": [{"COLUMN": VALUE, ...}, ...]}`; a column that is missing is null.

        Raises:
            BadRequest: The body is something else, or a value has another type than the column.
        """
        try:
            values: Any = orjson.loads(body)
        except ValueError as error:
            raise BadRequest(f"body: is not JSON: {error}") from error
        records = values.get("records") if isinstance(values, dict) else None
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise BadRequest('body: expected {"records": [{"COLUMN": VALUE, ...}, ...]}')
        if len(records) > self._most_records:
            raise BadRequest(f"records: given {len(records):,}, expected up to {self._most_records:,}", 413)
        for number, record in enumerate(records):
            if not record.keys() <= self._known:
                name, known = min(record.keys() - self._known), shorten_list([each.name for each in self._row])
                raise BadRequest(
                    f"records: column {name[:100]!r} of record {number} is unknown, expected some of: {known}", 422
                )
        try:
            return pa.RecordBatch.from_struct_array(pa.array(records, type=self._row))
        except (pa.ArrowException, OverflowError, UnicodeError):
            return self._as_they_are(records)

    def arrow(self, body: bytes) -> pa.RecordBatch:
        """Rows of an Arrow IPC stream.

        Raises:
            BadRequest: The body is something else.
        """
        try:
            table = pa.ipc.open_stream(body).read_all().combine_chunks()
        except pa.ArrowException as error:
            raise BadRequest(f"body: is not an Arrow IPC stream: {error}") from error
        if table.num_rows > self._most_records:
            raise BadRequest(f"rows: given {table.num_rows:,}, expected up to {self._most_records:,}", 413)
        return pa.RecordBatch.from_arrays([column.chunk(0) for column in table.columns], names=table.column_names)

    def _as_they_are(self, records: Sequence[dict[str, Any]]) -> pa.RecordBatch:
        """Columns of the types that the values have, which the feature plan casts as those of logs."""
        arrays = []
        for field in self._row:
            values = [record.get(field.name) for record in records]
            try:
                arrays.append(pa.array(values))
            except (pa.ArrowException, OverflowError, UnicodeError) as error:
                text = " ".join(str(error).split())[:200]
                raise BadRequest(f"records: column {field.name}: expected {field.type}: {text}", 422) from error
        return pa.RecordBatch.from_arrays(arrays, names=[field.name for field in self._row])


def _json_type(schema: Schema, name: str) -> pa.DataType:
    """The Arrow type of the usual values of a column in JSON."""
    texts = {column.name for column in schema.ids if column.type == "string"}
    texts |= {column.name for column in schema.id_lists if column.type == "string"}
    item = pa.string() if name in texts else pa.int64()
    if name in {column.name for column in schema.id_lists}:
        return pa.list_(item)
    if name in {column.weights for column in schema.id_lists}:
        return pa.list_(pa.float64())
    return pa.float64() if name in {column.name for column in schema.dense} else item
