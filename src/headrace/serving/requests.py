"""`RequestReader`: rows from the body of a request, checked as those of logs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from headrace.errors import HeadraceError
from headrace.features import FeaturePlan
from headrace.logs.groups import group_array, group_name
from headrace.logs.schema import Schema, is_reserved
from headrace.logs.source import ROW_ID
from headrace.messages import shorten_list

__all__ = ["BadRequest", "RequestReader", "with_context"]


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
        self._integers = [field.name for field in self._row if field.type == pa.int64()]
        self._integer_lists = [field.name for field in self._row if field.type == pa.list_(pa.int64())]
        self._most_records = most_records

    def records(self, body: bytes) -> pa.RecordBatch:
        """Rows of JSON: `{"records": [{"COLUMN": VALUE, ...}, ...]}`; a column that is missing is null.

        Raises:
            BadRequest: The body is something else, or a value has another type than the column.
        """
        return self.columns(self.parse(body))

    def parse(self, body: bytes) -> list[dict[str, Any]]:
        """The records of JSON, whose values `columns` checks.

        Raises:
            BadRequest: The body is something else.
        """
        return self._checked(_object_of(body, "records").get("records"), "records")

    def columns(self, records: Sequence[dict[str, Any]]) -> pa.RecordBatch:
        """Rows of the records of one or several requests.

        Raises:
            BadRequest: A value has another type than the column.
        """
        return self._columns(records, "records", self._row)

    def ranking(self, body: bytes) -> pa.RecordBatch:
        """Rows of JSON: `{"context": {"COLUMN": VALUE, ...}, "candidates": [{"COLUMN": VALUE, ...}, ...]}`.

        Returns:
            A row for each candidate, with the columns of the context in a group that has them once, see `with_context`.

        Raises:
            BadRequest: As for `records`, or a column is in both parts.
        """
        values = _object_of(body, "context", "candidates")
        context, candidates = values.get("context"), values.get("candidates")
        if not isinstance(context, dict):
            raise BadRequest('body: expected {"context": {"COLUMN": VALUE, ...}, "candidates": [...]}')
        (context,) = self._checked([context], "context")
        records = self._checked(candidates, "candidates")
        twice = next((name for record in records for name in record.keys() & context.keys()), None)
        if twice is not None:
            raise BadRequest(
                f"candidates: column {twice[:100]!r} is in the context, too; expected it in one of both", 422
            )
        shared, own = _divided(self._row, context.keys())
        return with_context(self._columns([context], "context", shared), self._columns(records, "candidates", own))

    def arrow(self, body: bytes) -> pa.RecordBatch:
        """Rows of an Arrow IPC stream; a column that is missing is null.

        Raises:
            BadRequest: The body is something else.
        """
        return self._completed(self._limited(_next_table(pa.BufferReader(body)), "rows"), ())

    def arrow_ranking(self, body: bytes) -> pa.RecordBatch:
        """Rows of two Arrow IPC streams, one after the other: the context, of one row, and the candidates.

        Raises:
            BadRequest: The body is something else, or a column is in both.
        """
        reader = pa.BufferReader(body)
        context, candidates = (
            self._limited(_next_table(reader), "context"),
            self._limited(_next_table(reader), "candidates"),
        )
        if context.num_rows != 1:
            raise BadRequest(f"context: given {context.num_rows:,} rows, expected 1")
        names = {field.name for field in self._row}
        context = context.select([name for name in context.schema.names if name in names])
        twice = set(context.schema.names) & set(candidates.schema.names)
        if twice:
            raise BadRequest(
                f"candidates: column {min(twice)[:100]!r} is in the context, too; expected it in one of both", 422
            )
        return with_context(context, self._completed(candidates, context.schema.names))

    def _checked(self, records: Any, what: str) -> list[dict[str, Any]]:
        """Records whose columns are known."""
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise BadRequest(f'body: expected a list of {{"COLUMN": VALUE, ...}} as {what}')
        if len(records) > self._most_records:
            raise BadRequest(f"{what}: given {len(records):,}, expected up to {self._most_records:,}", 413)
        for number, record in enumerate(records):
            if not record.keys() <= self._known:
                name, known = min(record.keys() - self._known), shorten_list([each.name for each in self._row])
                raise BadRequest(
                    f"{what}: column {name[:100]!r} of record {number} is unknown, expected some of: {known}", 422
                )
        return records

    def _columns(self, records: Sequence[dict[str, Any]], what: str, row: pa.StructType) -> pa.RecordBatch:
        if not len(row):
            return pa.RecordBatch.from_struct_array(pa.array([{}] * len(records), type=row))
        try:
            if not self._has_fractions(records):
                return pa.RecordBatch.from_struct_array(pa.array(records, type=row))
        except (pa.ArrowException, OverflowError, UnicodeError):
            pass  # other types than usual, or wrong ones
        return _as_they_are(records, what, row)

    def _has_fractions(self, records: Sequence[dict[str, Any]]) -> bool:
        """Whether an integer is given as a float, of which Arrow would drop what is behind the point."""
        for name in self._integers:
            if any(type(record.get(name)) is float for record in records):
                return True
        for name in self._integer_lists:
            for record in records:
                values = record.get(name)
                if type(values) is list and float in map(type, values):
                    return True
        return False

    def _completed(self, rows: pa.RecordBatch, elsewhere: Collection[str]) -> pa.RecordBatch:
        """Rows with nulls for the columns that neither they nor others have."""
        given = {*rows.schema.names, *elsewhere}
        missing = [field for field in self._row if field.name not in given]
        arrays = [*rows.columns, *(pa.nulls(rows.num_rows, field.type) for field in missing)]
        return pa.RecordBatch.from_arrays(arrays, names=[*rows.schema.names, *(field.name for field in missing)])

    def _limited(self, table: pa.Table, what: str) -> pa.RecordBatch:
        """The rows of a table, if there are not too many; kernels trust the names of group columns."""
        for name in table.column_names:
            if is_reserved(name):
                raise BadRequest(f"{what}: column {name[:100]!r}: the name is reserved", 422)
            if table.column_names.count(name) > 1:
                raise BadRequest(f"{what}: column {name[:100]!r} is given twice, expected once", 422)
        if table.num_rows > self._most_records:
            raise BadRequest(f"{what}: given {table.num_rows:,}, expected up to {self._most_records:,}", 413)
        columns = table.combine_chunks().columns
        arrays = [column.chunk(0) if column.num_chunks else pa.array([], column.type) for column in columns]
        return pa.RecordBatch.from_arrays(arrays, names=table.column_names)


def with_context(context: pa.RecordBatch, candidates: pa.RecordBatch) -> pa.RecordBatch:
    """Rows of candidates that share a context.

    The columns of the context become a group, like those of session logs (RecD): their features are computed, looked up
    and pooled once, and stay one row of an `InverseKeyedJaggedTensor` up to the model.

    Args:
        context: One row.
        candidates: N rows, with other columns.

    Returns:
        N rows.
    """
    num_rows = candidates.num_rows
    if not context.num_columns or not num_rows:
        return candidates
    features = dict(zip(context.schema.names, context.columns, strict=True))
    group = group_array(features, np.zeros(num_rows, np.int32))
    arrays, names = [*candidates.columns, group], [*candidates.schema.names, group_name(0)]
    return pa.RecordBatch.from_arrays(arrays, names=names)


def _given_twice(name: str) -> BadRequest:
    return BadRequest(f"candidates: column {name[:100]!r} is in the context, too; expected it in one of both", 422)


def _object_of(body: bytes, *keys: str) -> dict[str, Any]:
    try:
        values: Any = orjson.loads(body)
    except ValueError as error:
        raise BadRequest(f"body: is not JSON: {error}") from error
    expected = " and ".join(keys)
    if not isinstance(values, dict):
        raise BadRequest(f"body: expected a JSON object with {expected}")
    unknown = values.keys() - set(keys)
    if unknown:
        raise BadRequest(f"body: given {min(unknown)[:100]!r}, expected {expected}")
    return values


def _next_table(reader: pa.NativeFile) -> pa.Table:
    try:
        table: pa.Table = pa.ipc.open_stream(reader).read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise BadRequest(f"body: is not an Arrow IPC stream: {' '.join(str(error).split())[:200]}") from error
    return table


def _divided(row: pa.StructType, names: Collection[str]) -> tuple[pa.StructType, pa.StructType]:
    """The fields with these names, and the others."""
    fields = list(row)
    return pa.struct([f for f in fields if f.name in names]), pa.struct([f for f in fields if f.name not in names])


def _as_they_are(records: Sequence[dict[str, Any]], what: str, row: pa.StructType) -> pa.RecordBatch:
    """Columns of the types that the values have, which the feature plan casts as those of logs."""
    arrays = []
    for field in row:
        values = [record.get(field.name) for record in records]
        try:
            arrays.append(pa.array(values))
        except (pa.ArrowException, OverflowError, UnicodeError) as error:
            text = " ".join(str(error).split())[:200]
            raise BadRequest(f"{what}: column {field.name}: expected {field.type}: {text}", 422) from error
    return pa.RecordBatch.from_arrays(arrays, names=[field.name for field in row])


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
