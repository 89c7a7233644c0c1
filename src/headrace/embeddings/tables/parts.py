"""Parts of a sharded table as raw columns: taken apart, and put together for one process.

A part has the columns of `table_state` but `rows`: where a row lies is the business of who loads it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from headrace.embeddings.shards.plan import ShardingPlan
from headrace.embeddings.tables.state import Columns, TableHeader
from headrace.errors import CheckpointError

__all__ = ["join_parts", "owned_state", "to_part"]

FIRST_ROW = 1  # row 0 of a table is the zero row
NOT_PER_ROW = ("header", "rows")
NOT_OF_ROWS = ("pending.", "removed.")  # columns of ids without a row


def to_part(state: Columns, header: TableHeader) -> Columns:
    """The state of a shard's table as a part of the whole table, whose header is given."""
    return {name: column for name, column in state.items() if name not in NOT_PER_ROW} | {"header": header.to_column()}


def owned_state(parts: Sequence[Columns], plan: ShardingPlan, shard: int, header: TableHeader) -> Columns:
    """What a shard owns of a saved table, as the state of its own table, whose header is given."""
    state = _concat([_select(part, plan, shard) for part in _agreeing(parts)])
    state["rows"] = np.arange(FIRST_ROW, FIRST_ROW + len(state["ids"]), dtype=np.int64)
    state["header"] = header.to_column()
    return state


def join_parts(parts: Sequence[Columns]) -> Columns:
    """The state of the table in one process; the same for any number of parts.

    Raises:
        CheckpointError: The parts are not of one step.
    """
    header = TableHeader.read(_agreeing(parts)[0])
    state = _concat(parts)
    is_fixed = np.array([space["kind"] != "collisionless" for space in header.spaces])
    sizes = np.array([space["num_embeddings"] for space in header.spaces], dtype=np.int64)
    ends = FIRST_ROW + np.cumsum(np.where(is_fixed, sizes, 0))
    spaces, ids = state["spaces"], state["ids"]
    order = np.lexsort((ids, spaces, ~is_fixed[spaces]))  # rows of direct and hashed spaces lie before all others
    state = {name: column if name.startswith(NOT_OF_ROWS) else column[order] for name, column in state.items()}
    spaces, ids = state["spaces"], state["ids"]
    num_fixed = int(is_fixed[spaces].sum())
    state["rows"] = np.empty(len(ids), dtype=np.int64)
    state["rows"][:num_fixed] = (ends - sizes)[spaces[:num_fixed]] + ids[:num_fixed]
    state["rows"][num_fixed:] = int(ends[-1]) + np.arange(len(ids) - num_fixed)
    state["header"] = header.to_column()
    return state


def _agreeing(parts: Sequence[Columns]) -> Sequence[Columns]:
    clocks = {(header.step, header.version, *header.window_starts) for header in map(TableHeader.read, parts)}
    if len(clocks) != 1:
        raise CheckpointError(f"embedding table: parts were saved at steps {sorted(clocks)}, expected one step")
    return parts


def _select(part: Columns, plan: ShardingPlan, shard: int) -> Columns:
    """The rows, pending ids and evicted ids of a part that a shard owns."""

    def mine(spaces: npt.NDArray[np.int32], ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        owners = plan.owners_of(np.ascontiguousarray(spaces), np.ascontiguousarray(ids))
        return np.flatnonzero(owners == shard)

    places = {prefix: mine(part[f"{prefix}spaces"], part[f"{prefix}ids"]) for prefix in ("", *NOT_OF_ROWS)}
    return {
        name: np.asarray(column[places[next((p for p in NOT_OF_ROWS if name.startswith(p)), "")]])
        for name, column in part.items()
        if name not in NOT_PER_ROW
    }


def _concat(parts: Sequence[Columns]) -> Columns:
    """Rows of all parts; pending ids in the order of (space, id), as a table in one process keeps them."""
    names = [name for name in parts[0] if name not in NOT_PER_ROW]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in names}
    order = np.lexsort((joined["pending.ids"], joined["pending.spaces"]))
    return {name: column[order] if name.startswith("pending.") else column for name, column in joined.items()}
