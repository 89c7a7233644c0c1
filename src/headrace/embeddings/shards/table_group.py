"""One shard's part of a table group, with rows only for keys it owns and has seen.

Inside, every table is collisionless: a row is made when a key is first trained on, with the value it would begin with
anywhere, since that depends on (seed, table, id) alone. So a shard needs memory for its own keys only, whatever the
kind of the table, and any plan can be changed into any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.embeddings.config import TableConfig, dim_of_tables
from headrace.embeddings.shards.plan import ShardingPlan
from headrace.embeddings.tables.metadata import RECORD
from headrace.embeddings.tables.parts import owned_state, to_part
from headrace.embeddings.tables.state import Columns, TableGroupHeader, upgraded
from headrace.embeddings.tables.table_group import TableGroup

__all__ = ["TableGroupSpec", "load_part", "make_part", "part_of"]

FIRST_ROOM = 1 << 14
"""Rows of a table there is room for at first; arrays grow by half, so a small start costs little."""

FIRST_BYTES = 1 << 28
"""Of the whole group at first: a request with many tables or wide rows must not fill the memory by itself."""


@dataclass(frozen=True)
class TableGroupSpec:
    """What a table group is, wherever its rows live.

    Attributes:
        tables: With different names and one dimension; `Keys` number them in this order.
        seed: Of first values.

    Raises:
        ConfigError: Two tables have the same name, or dimensions differ.
    """

    tables: Sequence[TableConfig]
    seed: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "tables", tuple(self.tables))
        dim_of_tables(self.tables)

    @property
    def embedding_dim(self) -> int:
        """Numbers per row."""
        return dim_of_tables(self.tables)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {"tables": [table.model_dump(mode="json") for table in self.tables], "seed": self.seed}

    @property
    def reads_have_counts(self) -> bool:
        """Whether sightings travel with reads: where ids are admitted at once, it is enough that they were seen."""
        return any(table.admission_count > 1 for table in self.tables)

    @cached_property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Of each table the ids there are, int64 [T]; 0 for any."""
        sizes = [0 if table.kind == "collisionless" else table.num_embeddings for table in self.tables]
        return np.array(sizes, dtype=np.int64)

    def header(self) -> TableGroupHeader:
        """The header of the new group in one process."""
        return TableGroupHeader.of(self.tables, self.seed)


def make_part(spec: TableGroupSpec, plan: ShardingPlan, shard: int) -> TableGroup:
    """The rows of a shard, none yet.

    Args:
        spec: Of the whole group.
        plan: Who owns what.
        shard: This shard's number.
    """
    widest = 12 * spec.embedding_dim + RECORD.itemsize  # a row in fp32 and the two slots of Adam
    most = min(FIRST_ROOM, max(1, FIRST_BYTES // (widest * len(spec.tables))))
    here = [
        table.model_copy(
            update={
                "kind": "collisionless",
                "admission_count": table.admission_count if table.kind == "collisionless" else 0,
                "num_embeddings": min(-(-table.num_embeddings // plan.num_shards), most),
                "init_scale": table.scale,
            }
        )
        for table in spec.tables
    ]
    return TableGroup(here, seed=spec.seed)


def part_of(rows: TableGroup, spec: TableGroupSpec) -> Columns:
    """A shard's part of the group as raw columns; see `tables.parts`."""
    state = rows.state_dict()
    return to_part(state, replace(TableGroupHeader.read(state), tables=spec.header().tables))


def load_part(rows: TableGroup, parts: Sequence[Columns], spec: TableGroupSpec, plan: ShardingPlan, shard: int) -> None:
    """Make the rows of a shard its part of a saved table group.

    Args:
        rows: From `make_part` with the same arguments.
        parts: Of any number of shards, or the one state of a group in one process.
        spec: Of the whole group.
        plan: Who owns what.
        shard: This shard's number.

    Raises:
        CheckpointError: It was saved with other tables, dimension or seed; both sides are in the text.
    """
    parts = [upgraded(part) for part in parts]
    headers = [TableGroupHeader.read(part) for part in parts]
    for header in headers:
        header.check(spec.header())
    tables = TableGroupHeader.of(rows.tables, spec.seed).tables
    rows.load_state_dict(owned_state(parts, plan, shard, replace(headers[0], tables=tables)))
