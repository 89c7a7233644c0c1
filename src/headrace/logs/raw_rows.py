"""Encodes raw rows as JSON for the quarantine, and decodes them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.logs.plain_values import plain_values
from headrace.logs.source import ROW_ID

__all__ = ["decode_rows", "encode_rows", "parse_row", "shown", "values_at"]

MAX_SHOWN = 80
"""Maximum characters of a bad value in error messages."""


def values_at(batch: pa.RecordBatch, rows: npt.NDArray[np.int64]) -> dict[str, list[Any]]:
    """The values of some rows of a batch by column, converted by `headrace.logs.plain_values`."""
    return {name: _values_at(column, rows) for name, column in zip(batch.schema.names, batch.columns, strict=True)}


def encode_rows(columns: Mapping[str, Sequence[Any]], row_ids: npt.NDArray[np.int64]) -> list[str]:
    """Encode each row as a JSON object of its columns and row id, which `decode_rows` reads.

    Bytes that are not UTF-8 become escapes such as `\\udce9`, and are restored when decoded.

    Args:
        columns: Result of `values_at`.
        row_ids: int64 [rows].
    """
    rows = zip(*columns.values(), row_ids.tolist(), strict=True)
    names = [*columns, ROW_ID]
    return [_to_json(dict(zip(names, row, strict=True))) for row in rows]


def shown(value: pa.Array) -> str:
    """Format a single value for an error message: its JSON, truncated."""
    text = _to_json(plain_values(value)[0])
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def parse_row(text: str | None) -> dict[str, Any] | None:
    """Parse a row written by `encode_rows`; returns None if it is not a JSON object with a row id."""
    try:
        row = json.loads(text or "")
    except (ValueError, RecursionError):
        return None
    row_id = row.get(ROW_ID) if isinstance(row, dict) else None
    return row if type(row_id) is int and -(2**63) <= row_id < 2**63 else None


def decode_rows(
    rows: Iterable[Mapping[str, Any]], names: Sequence[str]
) -> Iterator[tuple[pa.RecordBatch, npt.NDArray[np.int64]]]:
    """Convert parsed rows to batches in the same order, with row ids.

    A column of bad rows may have values of several types, so a batch ends where the types change.

    Args:
        rows: Results of `parse_row`.
        names: Columns to create; null where a row has no such key.
    """
    run: list[Mapping[str, Any]] = []
    kinds = [""] * len(names)
    for row in rows:
        own = [_kind_of(row.get(name)) for name in names]
        merged = [kind for pair in zip(kinds, own, strict=True) if (kind := _merge(*pair)) is not None]
        if len(merged) < len(own):
            yield _make_batch(run, names, kinds)
            run, merged = [], own
        run.append(row)
        kinds = merged
    if run:
        yield _make_batch(run, names, kinds)


def _to_json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # surrogates that represent bytes that are not UTF-8
        return json.dumps(value, allow_nan=False)
    return text


def _values_at(column: pa.Array, rows: npt.NDArray[np.int64]) -> list[Any]:
    try:
        taken = column.take(pa.array(rows))
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):  # views, run-end encoded arrays, and lists of these
        return [plain_values(column.slice(row, 1))[0] for row in rows.tolist()]
    return plain_values(taken)


def _kind_of(value: Any) -> str:
    """The column type that a value requires: "" for any; "list" for any list."""
    if value is None:
        return ""
    if isinstance(value, list):
        kinds = {_kind_of(inner) for inner in value} - {""}
        if not kinds:
            return "list"
        return f"list of {kinds.pop() if len(kinds) == 1 else 'str'}"
    if isinstance(value, int) and not isinstance(value, bool):
        return "int" if -(2**63) <= value < 2**64 else "str"
    return type(value).__name__ if isinstance(value, (bool, float, str)) else "json"


def _merge(one: str, other: str) -> str | None:
    """The kind of a column that can hold both, or None."""
    for narrow, wide in ((one, other), (other, one)):
        if narrow == wide or not narrow or (narrow == "list" and wide.startswith("list")):
            return wide
    return None


_TYPES = {"bool": pa.bool_(), "float": pa.float64(), "": pa.null()}


def _make_batch(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], kinds: Sequence[str]
) -> tuple[pa.RecordBatch, npt.NDArray[np.int64]]:
    arrays = [_make_column([row.get(name) for row in rows], kind) for name, kind in zip(names, kinds, strict=True)]
    row_ids = np.array([row[ROW_ID] for row in rows], dtype=np.int64)
    return pa.RecordBatch.from_arrays(arrays, names=list(names)), row_ids


def _make_column(values: list[Any], kind: str) -> pa.Array:
    if not kind.startswith("list"):
        return _make_array(values, kind)
    inner = kind.removeprefix("list").removeprefix(" of ")
    elements = _make_array([element for v in values if v is not None for element in v], inner)
    lengths = [0 if v is None else len(v) for v in values]
    mask = pa.array([v is None for v in values], pa.bool_())
    offsets = np.cumsum([0, *lengths], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), elements, mask=mask)


def _make_array(values: list[Any], kind: str) -> pa.Array:
    if kind in ("bool", "float", ""):
        return pa.array(values, _TYPES[kind])
    if kind == "int":
        given = [value for value in values if value is not None]
        if not given or max(given) < 2**63:
            return pa.array(values, pa.int64())
        if min(given) >= 0:
            return pa.array(values, pa.uint64())
    texts = [value if value is None or isinstance(value, str) else _to_json(value) for value in values]
    try:
        return pa.array(texts, pa.string())
    except UnicodeEncodeError:
        # The original bytes of the row, which are not UTF-8.
        return pa.array([None if text is None else _to_bytes(text) for text in texts], pa.binary())


def _to_bytes(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # an escape written by hand
        return text.encode("utf-8", "surrogatepass")
