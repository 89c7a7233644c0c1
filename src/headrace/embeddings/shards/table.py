"""One shard's part of a table, with rows only for keys it owns and has seen.

Inside, every space is collisionless: a row is made when a key is first trained on, with the value it would begin with
anywhere, since that depends on (seed, space, id) alone. So a shard needs memory for its own keys only, whatever the
kind of the space, and any plan can be changed into any other.
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
from headrace.embeddings.tables.state import Columns, TableHeader
from headrace.embeddings.tables.table_group import TableGroup

__all__ = ["TableSpec", "load_part", "make_part", "part_of"]

FIRST_ROOM = 1 << 14
"""Rows of a space there is room for at first; arrays grow by half, so a small start costs little."""

FIRST_BYTES = 1 << 28
"""Of the whole table at first: a request with many spaces or wide rows must not fill the memory by itself."""


@dataclass(frozen=True)
class TableSpec:
    """What a table is, wherever its rows live.

    Attributes:
        spaces: Name -> config.
        embedding_dim: Numbers per row.
        seed: Of first values.
    """

    spaces: Mapping[str, TableConfig]
    embedding_dim: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; spaces as a list, because their order counts."""
        spaces = [[name, config.model_dump(mode="json")] for name, config in self.spaces.items()]
        return {"spaces": spaces, "embedding_dim": self.embedding_dim, "seed": self.seed}

    @property
    def reads_have_counts(self) -> bool:
        """Whether sightings travel with reads: where ids are admitted at once, it is enough that they were seen."""
        return any(config.admission_count > 1 for config in self.spaces.values())

    @cached_property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Of each space the ids there are, int64 [S]; 0 for any."""
        configs = self.spaces.values()
        return np.array([0 if c.kind == "collisionless" else c.num_embeddings for c in configs], dtype=np.int64)

    def header(self) -> TableHeader:
        """The header of the new table in one process."""
        return TableHeader.of(self.spaces, self.embedding_dim, self.seed)


def make_part(spec: TableSpec, plan: ShardingPlan, shard: int) -> TableGroup:
    """The rows of a shard, none yet.

    Args:
        spec: Of the whole table.
        plan: Who owns what.
        shard: This shard's number.
    """
    widest = 12 * spec.embedding_dim + RECORD.itemsize  # a row in fp32 and the two slots of Adam
    most = min(FIRST_ROOM, max(1, FIRST_BYTES // (widest * len(spec.spaces))))
    room = {name: -(-config.num_embeddings // plan.num_shards) for name, config in spec.spaces.items()}
    here = {
        name: config.model_copy(
            update={
                "kind": "collisionless",
                "admission_count": config.admission_count if config.kind == "collisionless" else 0,
                "num_embeddings": min(room[name], most),
                "init_scale": config.scale,
            }
        )
        for name, config in spec.spaces.items()
    }
    return TableGroup(here, spec.embedding_dim, seed=spec.seed)


def part_of(rows: TableGroup, spec: TableSpec) -> Columns:
    """A shard's part of the table as raw columns; see `tables.parts`."""
    state = rows.state_dict()
    return to_part(state, replace(TableHeader.read(state), spaces=spec.header().spaces))


def load_part(rows: TableGroup, parts: Sequence[Columns], spec: TableSpec, plan: ShardingPlan, shard: int) -> None:
    """Make the rows of a shard its part of a saved table.

    Args:
        rows: From `make_part` with the same arguments.
        parts: Of any number of shards, or the one state of a table in one process.
        spec: Of the whole table.
        plan: Who owns what.
        shard: This shard's number.

    Raises:
        CheckpointError: It was saved with other spaces, dimension or seed; both sides are in the text.
    """
    headers = [TableHeader.read(part) for part in parts]
    for header in headers:
        header.check(spec.header())
    spaces = TableHeader.of(rows.spaces, spec.embedding_dim, spec.seed).spaces
    rows.load_state_dict(owned_state(parts, plan, shard, replace(headers[0], spaces=spaces)))
