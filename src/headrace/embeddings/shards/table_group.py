"""One shard's part of a table group, with rows only for keys it owns and has seen.

Inside, every table is collisionless: a row is made when a key is first trained on, with the value it would begin with
anywhere, since that depends on (seed, table, id) alone. So a shard needs memory for its own keys only, whatever the
kind of the table, and any plan can be changed into any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.embeddings.config import TableConfig
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
        tables: Name -> config.
        embedding_dim: Numbers per row.
        seed: Of first values.
    """

    tables: Mapping[str, TableConfig]
    embedding_dim: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; tables as a list, because their order counts."""
        tables = [[name, config.model_dump(mode="json")] for name, config in self.tables.items()]
        return {"tables": tables, "embedding_dim": self.embedding_dim, "seed": self.seed}

    @property
    def reads_have_counts(self) -> bool:
        """Whether sightings travel with reads: where ids are admitted at once, it is enough that they were seen."""
        return any(config.admission_count > 1 for config in self.tables.values())

    @cached_property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Of each table the ids there are, int64 [T]; 0 for any."""
        configs = self.tables.values()
        return np.array([0 if c.kind == "collisionless" else c.num_embeddings for c in configs], dtype=np.int64)

    def header(self) -> TableGroupHeader:
        """The header of the new group in one process."""
        return TableGroupHeader.of(self.tables, self.embedding_dim, self.seed)


def make_part(spec: TableGroupSpec, plan: ShardingPlan, shard: int) -> TableGroup:
    """The rows of a shard, none yet.

    Args:
        spec: Of the whole group.
        plan: Who owns what.
        shard: This shard's number.
    """
    widest = 12 * spec.embedding_dim + RECORD.itemsize  # a row in fp32 and the two slots of Adam
    most = min(FIRST_ROOM, max(1, FIRST_BYTES // (widest * len(spec.tables))))
    room = {name: -(-config.num_embeddings // plan.num_shards) for name, config in spec.tables.items()}
    here = {
        name: config.model_copy(
            update={
                "kind": "collisionless",
                "admission_count": config.admission_count if config.kind == "collisionless" else 0,
                "num_embeddings": min(room[name], most),
                "init_scale": config.scale,
            }
        )
        for name, config in spec.tables.items()
    }
    return TableGroup(here, spec.embedding_dim, seed=spec.seed)


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
    tables = TableGroupHeader.of(rows.tables, spec.embedding_dim, spec.seed).tables
    rows.load_state_dict(owned_state(parts, plan, shard, replace(headers[0], tables=tables)))
