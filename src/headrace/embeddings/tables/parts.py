"""Splits and joins the parts of a sharded table group, as raw columns.

A part has the columns of `tables.state` except `rows`, because the loading group numbers rows itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from headrace.embeddings.shards.plan import ShardingPlan
from headrace.embeddings.tables.state import Columns, TableGroupHeader, upgraded
from headrace.errors import CheckpointError

__all__ = ["join_parts", "owned_state", "to_part"]

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
    is_fixed = np.array([table["kind"] != "collisionless" for table in header.tables])
    sizes = np.array([table["num_embeddings"] for table in header.tables], dtype=np.int64)
    ends = FIRST_ROW + np.cumsum(np.where(is_fixed, sizes, 0))
    tables, ids = state["tables"], state["ids"]
    order = np.lexsort((ids, tables, ~is_fixed[tables]))  # rows of direct and hashed tables come before all others
    state = {name: column if name.startswith(NOT_OF_ROWS) else column[order] for name, column in state.items()}
    tables, ids = state["tables"], state["ids"]
    num_fixed = int(is_fixed[tables].sum())
    state["rows"] = np.empty(len(ids), dtype=np.int64)
    state["rows"][:num_fixed] = (ends - sizes)[tables[:num_fixed]] + ids[:num_fixed]
    state["rows"][num_fixed:] = int(ends[-1]) + np.arange(len(ids) - num_fixed)
    state["header"] = header.to_column()
    return state


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
    return {
        name: np.asarray(column[places[next((p for p in NOT_OF_ROWS if name.startswith(p)), "")]])
        for name, column in part.items()
        if name not in NOT_PER_ROW
    }


def _concat(parts: Sequence[Columns]) -> Columns:
    """Rows of all parts; pending ids in the order of (table, id), as a group in one process keeps them."""
    names = [name for name in parts[0] if name not in NOT_PER_ROW]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in names}
    order = np.lexsort((joined["pending.ids"], joined["pending.tables"]))
    return {name: column[order] if name.startswith("pending.") else column for name, column in joined.items()}
