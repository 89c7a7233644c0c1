"""`RequestReader`: rows from the body of a request, checked as those of logs."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from headrace.errors import HeadraceError
from headrace.features import FeaturePlan
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
        self._columns = tuple(name for name in plan.columns if name != ROW_ID)
        self._known = set(plan.schema.columns)
        self._most_records = most_records

    def records(self, body: bytes) -> pa.RecordBatch:
        """Rows of JSON: `{"records": [{"COLUMN": VALUE, ...}, ...]}`; a column that is missing is null.

        Raises:
            BadRequest: The body is something else.
        """
        try:
            values: Any = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"body: is not JSON: {error}") from error
        records = values.get("records") if isinstance(values, dict) else None
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise BadRequest('body: expected {"records": [{"COLUMN": VALUE, ...}, ...]}')
        if len(records) > self._most_records:
            raise BadRequest(f"records: given {len(records):,}, expected up to {self._most_records:,}", 413)
        unknown = {name for record in records for name in record} - self._known
        if unknown:
            known = shorten_list(self._columns)
            raise BadRequest(f"records: column {min(unknown)[:100]!r} is unknown, expected some of: {known}", 422)
        arrays = []
        for name in self._columns:
            try:
                arrays.append(pa.array([record.get(name) for record in records]))
            except (pa.ArrowException, OverflowError) as error:
                raise BadRequest(f"records: column {name}: {error}", 422) from error
        return pa.RecordBatch.from_arrays(arrays, names=list(self._columns))

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
