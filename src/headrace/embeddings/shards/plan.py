"""Who owns a key: a pure function of (table, id) and a `ShardingPlan`, the same in every trainer and shard."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.embeddings.config import TableConfig
from headrace.embeddings.keys import Keys
from headrace.embeddings.ops.hashing import mix64, multiply_shift
from headrace.errors import ConfigError

__all__ = ["ROW_WISE", "PlanKind", "Routes", "ShardingPlan", "make_plan"]

ROW_WISE = -1
"""In place of a table's owner: its ids are spread over all shards."""

PlanKind = Literal["row_wise", "table_wise"]

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True)
class ShardingPlan:
    """Which shard has which keys of one table group.

    Attributes:
        num_shards: Shards, numbered from 0.
        owners: For each table the shard that has all of it, or `ROW_WISE`: id by id, by a hash of (table, id).
    """

    num_shards: int
    owners: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.num_shards < 1 or not all(ROW_WISE <= owner < self.num_shards for owner in self.owners):
            raise ConfigError(
                f"sharding plan: {self.num_shards} shards, owners {list(self.owners)}; "
                f"expected each owner in 0..{self.num_shards - 1}, or {ROW_WISE} for row-wise"
            )

    def owners_of(self, tables: Int32s, ids: Int64s) -> Int32s:
        """The shard of each key, int32 [U]."""
        owners = np.empty(len(ids), dtype=np.int32)
        _find_owners(tables, ids, np.array(self.owners, dtype=np.int64), self.num_shards, owners)
        return owners

    def route(self, keys: Keys) -> Routes:
        """Keys shard by shard; within a shard they keep their order."""
        owners = self.owners_of(keys.tables, keys.ids)
        starts = np.zeros(self.num_shards + 1, dtype=np.int64)
        order = np.empty(len(keys), dtype=np.int64)
        _sort_by_owner(owners, starts, order)
        return Routes(starts, order)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {"num_shards": self.num_shards, "owners": list(self.owners)}


@dataclass(frozen=True, eq=False)
class Routes:
    """Which keys of a call go to which shard.

    Attributes:
        starts: int64 [shards + 1]; shard s gets the keys `order[starts[s]:starts[s + 1]]`.
        order: int64 [U], positions of keys.
    """

    starts: Int64s
    order: Int64s

    def of(self, shard: int) -> Int64s:
        """Positions of a shard's keys, ascending."""
        return self.order[self.starts[shard] : self.starts[shard + 1]]


def make_plan(
    tables: Sequence[TableConfig],
    num_shards: int,
    *,
    kind: PlanKind = "row_wise",
    traffic: Mapping[str, float] | None = None,
) -> ShardingPlan:
    """A plan for a table group.

    Row-wise spreads every table, so that load is even whatever the ids are, and every request goes to every shard.
    Table-wise keeps a table together where that leaves shards balanced: tables are given out from the heaviest on, each
    to the shard that is then least loaded (Graham's longest-processing-time rule), where a load is the greater of two
    shares, that of rows and that of traffic. A table that alone is more than a fair share of either stays row-wise.

    Args:
        tables: Of the group, in its order.
        num_shards: Shards.
        kind: Row-wise or table-wise.
        traffic: Unique keys per batch by table, as `RemoteStore.counters` measures them; None: the same for all.

    Raises:
        ConfigError: `traffic` names no table.
    """
    if kind == "row_wise" or num_shards == 1:
        return ShardingPlan(num_shards, (ROW_WISE,) * len(tables))
    names = [table.name for table in tables]
    unknown = [name for name in traffic or {} if name not in names]
    if unknown:
        raise ConfigError(f"sharding plan: traffic.{unknown[0]}: unknown, expected one of: {', '.join(names)}")
    rows = _shares([table.num_embeddings for table in tables])
    keys = _shares([1.0 if traffic is None else traffic.get(name, 0.0) for name in names])
    owners = [ROW_WISE] * len(tables)
    loads = [(0.0, shard, 0.0, 0.0) for shard in range(num_shards)]
    for number in sorted(range(len(tables)), key=lambda number: (-max(rows[number], keys[number]), number)):
        if max(rows[number], keys[number]) > 1 / num_shards:
            continue
        _, shard, row_load, key_load = heapq.heappop(loads)
        owners[number] = shard
        row_load, key_load = row_load + rows[number], key_load + keys[number]
        heapq.heappush(loads, (max(row_load, key_load), shard, row_load, key_load))
    return ShardingPlan(num_shards, tuple(owners))


def _shares(values: Sequence[float]) -> list[float]:
    total = sum(values) or 1.0
    return [value / total for value in values]


@kernel()
def _find_owners(tables: Int32s, ids: Int64s, table_owners: Int64s, num_shards: int, owners: Int32s) -> None:
    for u in range(len(ids)):
        owner = table_owners[tables[u]]
        if owner < 0:
            # Another constant than the directories use: a shard's keys must still look random to its own hash table.
            salt = mix64(np.uint64(tables[u]) + np.uint64(0xA0761D6478BD642F))
            owner = np.int64(multiply_shift(mix64(np.uint64(ids[u]) ^ salt), np.uint64(num_shards)))
        owners[u] = owner


@kernel()
def _sort_by_owner(owners: Int32s, starts: Int64s, order: Int64s) -> None:
    for u in range(len(owners)):
        starts[owners[u] + 1] += 1
    for s in range(len(starts) - 1):
        starts[s + 1] += starts[s]
    places = starts[:-1].copy()
    for u in range(len(owners)):
        order[places[owners[u]]] = u
        places[owners[u]] += 1
