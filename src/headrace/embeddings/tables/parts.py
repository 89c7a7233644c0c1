"""Parts of a sharded table group as raw columns: taken apart, and put together for one process.

A part has the columns of `tables.state` but `rows`: where a row lies is the business of who loads it.
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
    """The state of a shard's group as a part of the whole group, whose header is given."""
    return {name: column for name, column in state.items() if name not in NOT_PER_ROW} | {"header": header.to_column()}


def owned_state(parts: Sequence[Columns], plan: ShardingPlan, shard: int, header: TableGroupHeader) -> Columns:
    """What a shard owns of a saved group, as the state of its own group, whose header is given."""
    state = _concat([_select(part, plan, shard) for part in _agreeing(parts)])
    state["rows"] = np.arange(FIRST_ROW, FIRST_ROW + len(state["ids"]), dtype=np.int64)
    state["header"] = header.to_column()
    return state


def join_parts(parts: Sequence[Columns]) -> Columns:
    """The state of the group in one process; the same for any number of parts.

    Raises:
        CheckpointError: The parts are not of one step.
    """
    parts = _agreeing([upgraded(part) for part in parts])
    header, state = TableGroupHeader.read(parts[0]), _concat(parts)
    is_fixed = np.array([table["kind"] != "collisionless" for table in header.tables])
    sizes = np.array([table["num_embeddings"] for table in header.tables], dtype=np.int64)
    ends = FIRST_ROW + np.cumsum(np.where(is_fixed, sizes, 0))
    tables, ids = state["tables"], state["ids"]
    order = np.lexsort((ids, tables, ~is_fixed[tables]))  # rows of direct and hashed tables lie before all others
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
