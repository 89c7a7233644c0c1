"""`ShardingPlan` assigns keys to shards: a pure function of (table, id), equal in every trainer and shard.

Keys belong to *partitions*, and partitions to shards. Without a budget there is one per shard, and only shards matter.
Under a budget, ids of a partition compete for its rows and share its shared rows, so results depend on the number of
partitions, but not on that of shards.
"""

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
"""Owner of a table whose ids are spread over all partitions."""

PlanKind = Literal["row_wise", "table_wise"]

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True)
class ShardingPlan:
    """Assignment of the keys of one table group to shards.

    Attributes:
        num_shards: Number of shards, which are numbered from 0.
        owners: For each table, the partition with the whole table, or `ROW_WISE` to assign ids by a hash of (table,
            id).
        num_partitions: Number of partitions, which are numbered from 0; None for one per shard.
    """

    num_shards: int
    owners: tuple[int, ...]
    num_partitions: int | None = None

    def __post_init__(self) -> None:
        count = self.partition_count
        if self.num_shards < 1 or not all(ROW_WISE <= owner < count for owner in self.owners):
            raise ConfigError(
                f"sharding plan: {self.num_shards} shards, owners {list(self.owners)}; "
                f"expected each owner in 0..{count - 1}, or {ROW_WISE} for row-wise"
            )
        if count < self.num_shards:
            raise ConfigError(f"sharding plan: given {count} partitions for {self.num_shards} shards, expected as many")

    @property
    def partition_count(self) -> int:
        """Number of partitions."""
        return self.num_shards if self.num_partitions is None else self.num_partitions

    def owners_of(self, tables: Int32s, ids: Int64s) -> Int32s:
        """The shard of each key, int32 [U]."""
        return self._find(tables, ids, self.num_shards)

    def partitions_of(self, tables: Int32s, ids: Int64s) -> Int32s:
        """The partition of each key, int32 [U]."""
        return self._find(tables, ids, self.partition_count)

    def partitions_in(self, shard: int) -> list[int]:
        """The partitions of a shard, ascending; neighbours are in the same shard, and shards differ by at most one."""
        return [p for p in range(self.partition_count) if p * self.num_shards // self.partition_count == shard]

    def _find(self, tables: Int32s, ids: Int64s, num_owners: int) -> Int32s:
        """The owner of each key if partitions are divided among so many."""
        owners = np.empty(len(ids), dtype=np.int32)
        _find_owners(tables, ids, np.array(self.owners, dtype=np.int64), self.partition_count, num_owners, owners)
        return owners

    def route(self, keys: Keys) -> Routes:
        """Group keys by shard; within a shard they keep their order."""
        owners = self.owners_of(keys.tables, keys.ids)
        starts = np.zeros(self.num_shards + 1, dtype=np.int64)
        order = np.empty(len(keys), dtype=np.int64)
        _sort_by_owner(owners, starts, order)
        return Routes(starts, order)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        return {"num_shards": self.num_shards, "owners": list(self.owners), "num_partitions": self.num_partitions}


@dataclass(frozen=True, eq=False)
class Routes:
    """Assignment of the keys of one call to shards.

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
    num_partitions: int | None = None,
) -> ShardingPlan:
    """Make the sharding plan of a table group.

    A row-wise plan spreads every table over all shards: the load is even for any ids, but every request goes to every
    shard. A table-wise plan keeps tables together if shards stay balanced: starting with the heaviest, each table goes
    to the least loaded shard (Graham's longest-processing-time rule). A load is the greater of two shares, of rows and
    of traffic. A table with more than a fair share of either stays row-wise.

    Args:
        tables: Tables of the group, in order.
        num_shards: Number of shards.
        kind: Row-wise or table-wise.
        traffic: Unique keys per batch by table name, see `RemoteStore.keys_by_table`; None for equal traffic.
        num_partitions: Number of partitions, at least that of shards; None for one per shard.

    Raises:
        ConfigError: `traffic` names an unknown table.
    """
    count = num_shards if num_partitions is None else num_partitions
    if kind == "row_wise" or count == 1:
        return ShardingPlan(num_shards, (ROW_WISE,) * len(tables), num_partitions)
    names = [table.name for table in tables]
    unknown = [name for name in traffic or {} if name not in names]
    if unknown:
        raise ConfigError(f"sharding plan: traffic.{unknown[0]}: unknown, expected one of: {', '.join(names)}")
    rows = _shares([table.num_embeddings for table in tables])
    keys = _shares([1.0 if traffic is None else traffic.get(name, 0.0) for name in names])
    owners = [ROW_WISE] * len(tables)
    loads = [(0.0, partition, 0.0, 0.0) for partition in range(count)]
    for number in sorted(range(len(tables)), key=lambda number: (-max(rows[number], keys[number]), number)):
        if max(rows[number], keys[number]) > 1 / count:
            continue
        _, partition, row_load, key_load = heapq.heappop(loads)
        owners[number] = partition
        row_load, key_load = row_load + rows[number], key_load + keys[number]
        heapq.heappush(loads, (max(row_load, key_load), partition, row_load, key_load))
    return ShardingPlan(num_shards, tuple(owners), num_partitions)


def _shares(values: Sequence[float]) -> list[float]:
    total = sum(values) or 1.0
    return [value / total for value in values]


@kernel()
def _find_owners(
    tables: Int32s, ids: Int64s, table_owners: Int64s, num_partitions: int, num_owners: int, owners: Int32s
) -> None:
    for u in range(len(ids)):
        owner = table_owners[tables[u]]
        if owner < 0:
            # This constant differs from the index's, so that a shard's keys still look random to its own hash table.
            salt = mix64(np.uint64(tables[u]) + np.uint64(0xA0761D6478BD642F))
            owner = np.int64(multiply_shift(mix64(np.uint64(ids[u]) ^ salt), np.uint64(num_partitions)))
        owners[u] = owner * num_owners // num_partitions


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
