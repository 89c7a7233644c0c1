"""Raw rows as JSON: what a quarantine keeps of a bad row, and how it becomes a row again."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as pt

from headrace.logs.pieces import ROW_ID

__all__ = ["decode_rows", "encode_rows", "parse_row", "shown"]

MAX_SHOWN = 80
"""Characters of a bad value that an error shows."""


def encode_rows(batch: pa.RecordBatch, row_ids: npt.NDArray[np.int64]) -> list[str]:
    """Each row as a JSON object of its columns and its row id.

    NaN and infinities, which JSON does not have, times and decimals become strings; bytes that are not UTF-8 are
    escaped. All of these can be read back by `decode_rows` and the checks after it.
    """
    columns = [_plain_column(column) for column in batch.columns]
    names = [*batch.schema.names, ROW_ID]
    rows = zip(*columns, row_ids.tolist(), strict=True)
    return [json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False, allow_nan=False) for row in rows]


def shown(value: pa.Array) -> str:
    """A column of one row as a short text for an error: its JSON, cut where it is long."""
    text = json.dumps(_plain_column(value)[0], ensure_ascii=False)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def parse_row(text: str | None) -> dict[str, Any] | None:
    """The values of one row as `encode_rows` wrote it, or None if it is not a JSON object with a row id."""
    try:
        row = json.loads(text or "")
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get(ROW_ID), int) else None


def decode_rows(
    rows: Iterable[Mapping[str, Any]], names: Sequence[str]
) -> Iterator[tuple[pa.RecordBatch, npt.NDArray[np.int64]]]:
    """Parsed rows as batches in the same order, with their row ids.

    The values of a column of bad rows may be of several types, so a batch ends where the types change.

    Args:
        rows: From `parse_row`.
        names: Columns to make; null where a row has no such key.
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


def _plain_column(column: pa.Array) -> list[Any]:
    kind = column.type
    if pt.is_temporal(kind) or pt.is_decimal(kind):
        column = column.cast(pa.string())
    try:
        return [_plain(value) for value in column.to_pylist()]
    except UnicodeDecodeError:
        return [_plain(value) for value in column.cast(pa.large_binary()).to_pylist()]


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="backslashreplace")
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return str(value)


def _kind_of(value: Any) -> str:
    """The type a value asks of its column: "" fits any; "list" any list."""
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
    """The kind of a column that holds both, or None if none can."""
    for narrow, wide in ((one, other), (other, one)):
        if narrow == wide or not narrow or (narrow == "list" and wide.startswith("list")):
            return wide
    return None


_TYPES = {"bool": pa.bool_(), "float": pa.float64(), "str": pa.string(), "json": pa.string(), "": pa.null()}


def _make_batch(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], kinds: Sequence[str]
) -> tuple[pa.RecordBatch, npt.NDArray[np.int64]]:
    arrays = [_make_column([row.get(name) for row in rows], kind) for name, kind in zip(names, kinds, strict=True)]
    row_ids = np.array([row[ROW_ID] for row in rows], dtype=np.int64)
    return pa.RecordBatch.from_arrays(arrays, names=list(names)), row_ids


def _make_column(values: list[Any], kind: str) -> pa.Array:
    if kind.startswith("list"):
        inner = kind.removeprefix("list").removeprefix(" of ")
        item = pa.int64() if inner == "int" else _TYPES.get(inner, pa.string())
        lists = [None if v is None else [_fit(element, inner) for element in v] for v in values]
        return pa.array(lists, pa.list_(item))
    return pa.array([_fit(value, kind) for value in values], pa.int64() if kind == "int" else _TYPES[kind])


def _fit(value: Any, kind: str) -> Any:
    if value is None or kind in ("bool", "float"):
        return value
    if kind == "int":
        return value - 2**64 if value >= 2**63 else value  # the same bits, as everywhere ids are cast
    return value if isinstance(value, str) else json.dumps(value)
