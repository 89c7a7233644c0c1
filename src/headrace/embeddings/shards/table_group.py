"""One shard's part of a table group, with rows only for keys that it owns and has seen.

Internally every table is collisionless: a row is created when its key is first trained on, with an initial value that
depends on (seed, table, id) only. So a shard needs memory for its own keys only, for any kind of table, and plans can
be changed freely.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.embeddings.changes.delta import Delta
from headrace.embeddings.config import TableConfig, dim_of_tables
from headrace.embeddings.shards.plan import ShardingPlan
from headrace.embeddings.storage.host import HostStorage
from headrace.embeddings.storage.protocol import MakeStorage
from headrace.embeddings.tables.make_group import BudgetSpec, make_partitions
from headrace.embeddings.tables.metadata import RECORD
from headrace.embeddings.tables.partitioned_table_group import PartitionedTableGroup
from headrace.embeddings.tables.partitions import separated_columns
from headrace.embeddings.tables.parts import owned_state, to_part
from headrace.embeddings.tables.state import Columns, TableGroupHeader, upgraded
from headrace.embeddings.tables.table_group import TableGroup

__all__ = ["TableGroupSpec", "collisionless_tables", "load_part", "make_part", "parts_of"]

FIRST_ROOM = 1 << 14
"""Initial capacity per table in rows; arrays grow by half, so a small start costs little."""

FIRST_BYTES = 1 << 28
"""Maximum initial memory of a group, so that a request with many tables or wide rows cannot exhaust memory."""


@dataclass(frozen=True)
class TableGroupSpec:
    """Specification of a table group.

    Attributes:
        tables: Configs with unique names and one dimension; `Keys` number the tables in this order.
        seed: Seed of initial values.
        budget: Budget of the whole group; None for a row for every id.

    Raises:
        ConfigError: Two tables have the same name, or dimensions differ.
    """

    tables: Sequence[TableConfig]
    seed: int
    budget: BudgetSpec | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "tables", tuple(self.tables))
        dim_of_tables(self.tables)

    @property
    def embedding_dim(self) -> int:
        """Dimension of rows."""
        return dim_of_tables(self.tables)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        values = {"tables": [table.model_dump(mode="json") for table in self.tables], "seed": self.seed}
        return values | {"budget": None if self.budget is None else self.budget.to_dict()}

    @property
    def reads_have_counts(self) -> bool:
        """Whether reads send counts. If ids are admitted at once, it is enough to know that they were seen."""
        return any(table.admission_count > 1 for table in self.tables)

    @cached_property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Number of valid ids of each table, int64 [T]; 0 for any id."""
        sizes = [0 if table.kind == "collisionless" else table.num_embeddings for table in self.tables]
        return np.array(sizes, dtype=np.int64)

    def header(self) -> TableGroupHeader:
        """The header of a new group in one process."""
        return TableGroupHeader.of(self.tables, self.seed)


def make_part(
    spec: TableGroupSpec, plan: ShardingPlan, shard: int, make_storage: MakeStorage = HostStorage
) -> TableGroup:
    """Create the empty rows of a shard.

    Args:
        spec: Specification of the whole group.
        plan: Assignment of keys to shards.
        shard: Number of this shard.
        make_storage: Creates the storage of the rows.

    Raises:
        ConfigError: The budget is too small, or its policy has no partitions.
    """
    if spec.budget is not None:
        return make_partitions(spec.tables, spec.budget, plan, shard, seed=spec.seed, make_storage=make_storage)
    widest = 12 * spec.embedding_dim + RECORD.itemsize  # a row in fp32 and the two slots of Adam
    most = min(FIRST_ROOM, max(1, FIRST_BYTES // (widest * len(spec.tables))))
    here = [
        table.model_copy(update={"num_embeddings": min(-(-table.num_embeddings // plan.num_shards), most)})
        for table in collisionless_tables(spec)
    ]
    return TableGroup(here, seed=spec.seed, make_storage=make_storage)


def collisionless_tables(spec: TableGroupSpec) -> list[TableConfig]:
    """The tables as they are kept outside of one process: every row is created when its key is first trained on."""
    return [
        table.model_copy(
            update={
                "kind": "collisionless",
                "admission_count": table.admission_count if table.kind == "collisionless" else 0,
                "init_scale": table.scale,
            }
        )
        for table in spec.tables
    ]


def parts_of(rows: TableGroup, spec: TableGroupSpec) -> list[Columns]:
    """Convert the rows of a shard to parts of the group, as raw columns; see `tables.parts`.

    Returns:
        One part, or under a budget the state of each partition here.
    """
    if isinstance(rows, PartitionedTableGroup):
        return list(rows.part_states().values())
    state = rows.state_dict()
    return [to_part(state, replace(TableGroupHeader.read(state), tables=spec.header().tables))]


def deltas_of(rows: TableGroup, spec: TableGroupSpec, *, everything: bool, consumer: str) -> list[Delta]:
    """What changed in the rows of a shard since `mark_saved`, for each of `parts_of`."""
    deltas = rows.deltas(everything=everything, consumer=consumer)
    if isinstance(rows, PartitionedTableGroup):
        return deltas
    header = replace(TableGroupHeader.read(deltas[0].whole), tables=spec.header().tables)
    return [replace(deltas[0], whole=deltas[0].whole | {"header": header.to_column()})]


def load_part(rows: TableGroup, parts: Sequence[Columns], spec: TableGroupSpec, plan: ShardingPlan, shard: int) -> None:
    """Load a shard's part of a saved table group.

    Args:
        rows: Result of `make_part` with the same arguments.
        parts: Parts of any number of shards, all partitions, or the state of a group in one process.
        spec: Specification of the whole group.
        plan: Assignment of keys to shards.
        shard: Number of this shard.

    Raises:
        CheckpointError: The group was saved with different tables, dimension or seed; the text names both.
    """
    if isinstance(rows, PartitionedTableGroup):
        rows.load_states(parts if len(parts) > 1 else separated_columns(parts[0]))
        return
    parts = [upgraded(part) for part in parts]
    headers = [TableGroupHeader.read(part) for part in parts]
    for header in headers:
        header.check(spec.header())
    tables = TableGroupHeader.of(rows.tables, spec.seed).tables
    rows.load_state_dict(owned_state(parts, plan, shard, replace(headers[0], tables=tables)))
