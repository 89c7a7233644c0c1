"""Splits and joins the parts of a sharded table group, and moves saved rows to a group of other tables, as raw columns.

A part has the columns of `tables.state` except `rows`, because the loading group numbers rows itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.embeddings.shards.plan import ShardingPlan
from headrace.embeddings.tables.state import Columns, TableGroupHeader, upgraded
from headrace.errors import CheckpointError

__all__ = ["header_with_tables", "join_parts", "numbered", "owned_state", "rows_of_tables", "to_part", "with_tables"]

FIRST_ROW = 1  # row 0 of a group is the zero row
NOT_PER_ROW = ("header", "rows")
NOT_OF_ROWS = ("pending.", "removed.")  # columns of ids without a row


def to_part(state: Columns, header: TableGroupHeader) -> Columns:
    """Convert the state of a shard's group to a part of the whole group, which has the given header."""
    return {name: column for name, column in state.items() if name not in NOT_PER_ROW} | {"header": header.to_column()}


def owned_state(parts: Sequence[Columns], plan: ShardingPlan, shard: int, header: TableGroupHeader) -> Columns:
    """Select a shard's share of a saved group, as the state of the shard's group, which has the given header."""
    state = _concat([_select(part, plan, shard) for part in _agreeing(parts)])
    state["rows"] = np.arange(FIRST_ROW, FIRST_ROW + len(state["ids"]), dtype=np.int64)
    state["header"] = header.to_column()
    return state


def join_parts(parts: Sequence[Columns]) -> Columns:
    """Join parts to the state of a group in one process; the result is the same for any number of parts.

    Raises:
        CheckpointError: The parts were saved at different steps.
    """
    parts = _agreeing([upgraded(part) for part in parts])
    header, state = TableGroupHeader.read(parts[0]), _concat(parts)
    order, rows = _row_numbers(header, state["tables"], state["ids"])
    state = {name: column if name.startswith(NOT_OF_ROWS) else column[order] for name, column in state.items()}
    return state | {"rows": rows, "header": header.to_column()}


def numbered(state: Columns) -> Columns:
    """The state of a group in one process, given its columns without row numbers, ascending by (table, id).

    Rows keep their order, so that nothing is copied; row numbers are not ascending if a collisionless table comes
    before one of another kind.
    """
    if "rows" in state:
        return state
    is_fixed, starts = _fixed_tables(TableGroupHeader.read(state))
    tables, ids = state["tables"], state["ids"]
    if not is_fixed.any():
        return state | {"rows": np.arange(int(starts[-1]), int(starts[-1]) + len(ids))}
    of_fixed = is_fixed[tables]
    rows = np.empty(len(ids), dtype=np.int64)
    rows[of_fixed] = starts[tables[of_fixed]] + ids[of_fixed]
    rows[~of_fixed] = int(starts[-1]) + np.arange(len(ids) - int(of_fixed.sum()))
    return state | {"rows": rows}


def header_with_tables(state: Columns, group: TableGroupHeader) -> TableGroupHeader | None:
    """The header of a saved group, or of a part of one, once it has the tables of another group.

    Tables are numbered anew, so the change is a version of its own, across which consumers of changes cannot continue:
    they read everything again.

    Args:
        state: The saved columns.
        group: Header of a new group with the other tables.

    Returns:
        The header; None if the saved group has these tables already.

    Raises:
        CheckpointError: The dimension, the seed, or a table that both have differs, or there is a budget.
    """
    saved = TableGroupHeader.read(upgraded(state))
    if saved.retention or group.retention:
        raise CheckpointError("table group: with embeddings.budget, expected the same features as in the checkpoint")
    known = {table["name"]: table for table in saved.tables}
    tables = [known.get(table["name"], table) for table in group.tables]
    version = saved.version + 1
    header = replace(saved, tables=tables, version=version, cursors={}, removed_from=version)
    header.check(group)
    return None if tables == saved.tables else header


def with_tables(state: Columns, header: TableGroupHeader) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """The columns of a saved group, or of a part of one, for a group of other tables, one after the other.

    Tables of the same name keep rows, optimizer state, metadata and ids that are not admitted yet. Rows of other tables
    are left out, and new tables have none.

    Args:
        state: The saved columns.
        header: Result of `header_with_tables`.
    """
    state = upgraded(state)
    places_now = {table["name"]: number for number, table in enumerate(header.tables)}
    saved = TableGroupHeader.read(state).tables
    numbers = np.array([places_now.get(table["name"], -1) for table in saved], dtype=np.int32)
    yield "header", header.to_column()
    tables, pending = numbers[state["tables"]], numbers[state["pending.tables"]]
    kept = np.flatnonzero(tables >= 0)
    if "rows" in state:
        order, rows = _row_numbers(header, tables[kept], np.asarray(state["ids"])[kept])
        kept = kept[order]
        yield "rows", rows
    waiting = np.flatnonzero(pending >= 0)
    waiting = waiting[np.lexsort((np.asarray(state["pending.ids"])[waiting], pending[waiting]))]
    places = {"": kept, "pending.": waiting, "removed.": np.empty(0, dtype=np.int64)}
    for name, column in state.items():
        if name not in NOT_PER_ROW:
            column = numbers[column] if name in ("tables", "pending.tables") else column
            yield name, np.asarray(column[places[_prefix(name)]])


def rows_of_tables(state: Columns) -> dict[str, int]:
    """Number of saved rows of each table of a group, or of a part of one."""
    state = upgraded(state)
    header = TableGroupHeader.read(state)
    counts = np.bincount(state["tables"], minlength=len(header.tables))
    return {table["name"]: int(count) for table, count in zip(header.tables, counts, strict=True)}


def _row_numbers(
    header: TableGroupHeader, tables: npt.NDArray[np.int32], ids: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The order of keys [R] in a group in one process, and their rows, ascending."""
    is_fixed, starts = _fixed_tables(header)
    order = np.lexsort((ids, tables, ~is_fixed[tables]))  # rows of direct and hashed tables come before all others
    tables, ids = tables[order], ids[order]
    num_fixed = int(is_fixed[tables].sum())
    rows = np.empty(len(ids), dtype=np.int64)
    rows[:num_fixed] = starts[tables[:num_fixed]] + ids[:num_fixed]
    rows[num_fixed:] = int(starts[-1]) + np.arange(len(ids) - num_fixed)
    return order, rows


def _fixed_tables(header: TableGroupHeader) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Whether each of T tables has a row for every id; int64 [T + 1], their first rows, and that of all others."""
    is_fixed = np.array([table["kind"] != "collisionless" for table in header.tables])
    sizes = np.array([table["num_embeddings"] for table in header.tables], dtype=np.int64)
    ends = FIRST_ROW + np.cumsum(np.where(is_fixed, sizes, 0))
    return is_fixed, np.append(ends - np.where(is_fixed, sizes, 0), ends[-1])


def _prefix(name: str) -> str:
    """The kind of a column: of rows (empty), of pending ids, or of evicted ids."""
    return next((prefix for prefix in NOT_OF_ROWS if name.startswith(prefix)), "")


def _agreeing(parts: Sequence[Columns]) -> Sequence[Columns]:
    clocks = {(header.step, header.version, *header.window_starts) for header in map(TableGroupHeader.read, parts)}
    if len(clocks) != 1:
        raise CheckpointError(f"table group: parts were saved at steps {sorted(clocks)}, expected one step")
    return parts


def _select(part: Columns, plan: ShardingPlan, shard: int) -> Columns:
    """The rows, pending ids and evicted ids of a part that a shard owns."""

    def mine(tables: npt.NDArray[np.int32], ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        owners = plan.owners_of(np.ascontiguousarray(tables), np.ascontiguousarray(ids))
        return np.flatnonzero(owners == shard)

    places = {prefix: mine(part[f"{prefix}tables"], part[f"{prefix}ids"]) for prefix in ("", *NOT_OF_ROWS)}
    return {name: np.asarray(column[places[_prefix(name)]]) for name, column in part.items() if name not in NOT_PER_ROW}


def _concat(parts: Sequence[Columns]) -> Columns:
    """Rows of all parts; pending ids in the order of (table, id), as a group in one process keeps them."""
    names = [name for name in parts[0] if name not in NOT_PER_ROW]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in names}
    order = np.lexsort((joined["pending.ids"], joined["pending.tables"]))
    return {name: column[order] if name.startswith("pending.") else column for name, column in joined.items()}
