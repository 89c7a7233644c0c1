"""`ShardTable`: one shard's part of a table, with rows only for keys it owns and has seen.

Inside, every space is collisionless: a row is made when a key is first trained on, with the value it would begin with
anywhere, since that depends on (seed, space, id) alone. So a shard needs memory for its own keys only, whatever the
kind of the space, and any plan can be changed into any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.embeddings.config import TableConfig
from headrace.embeddings.keys import Keys
from headrace.embeddings.ops.key_sets import first_repeated_key
from headrace.embeddings.shards.plan import ShardingPlan
from headrace.embeddings.shards.request_checks import first_bad_key, first_row_not_finite
from headrace.embeddings.tables.arena import ROW_METADATA
from headrace.embeddings.tables.parts import owned_state, to_part
from headrace.embeddings.tables.state import Columns, TableHeader
from headrace.embeddings.tables.table import EmbeddingTable
from headrace.errors import ShardError

__all__ = ["ShardTable", "TableSpec"]

FIRST_ROOM = 1 << 14
"""Rows of a space there is room for at first; arrays grow by half, so a small start costs little."""

FIRST_BYTES = 1 << 28
"""Of the whole table at first: a request with many spaces or wide rows must not fill the memory by itself."""

Float32s = npt.NDArray[np.float32]


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

    def header(self) -> TableHeader:
        """The header of the new table in one process."""
        return TableHeader.of(self.spaces, self.embedding_dim, self.seed)


class ShardTable:
    """See the module. Not thread-safe.

    Args:
        spec: Of the whole table.
        plan: Who owns what.
        shard: This shard's number.

    Attributes:
        table: The rows here.
    """

    def __init__(self, spec: TableSpec, plan: ShardingPlan, shard: int) -> None:
        self.spec = spec
        self.plan = plan
        self.shard = shard
        widest = 12 * spec.embedding_dim + ROW_METADATA.itemsize  # a row in fp32 and the two slots of Adam
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
        self.table = EmbeddingTable(here, spec.embedding_dim, seed=spec.seed)
        configs = list(spec.spaces.values())
        self._sizes = np.array([0 if c.kind == "collisionless" else c.num_embeddings for c in configs], dtype=np.int64)

    def check(self, keys: Keys) -> None:
        """Refuse keys that nobody can have met.

        Raises:
            ShardError: An id of a direct or hashed space is out of its range, a count is negative, or a key comes
                twice; names the field, id and space.
        """
        bad = first_bad_key(keys.spaces, keys.ids, keys.counts, self._sizes)
        if bad >= 0:
            name, size = self._space(keys, bad), self._sizes[keys.spaces[bad]]
            if keys.counts[bad] < 0:
                raise ShardError(
                    f"count: given {keys.counts[bad]} for id {keys.ids[bad]} of {name}, expected 0 or more"
                )
            raise ShardError(f"{name}: id {keys.ids[bad]}, expected 0 <= id < {size}")
        twice = first_repeated_key(keys.spaces, keys.ids)
        if twice >= 0:
            raise ShardError(f"id: {keys.ids[twice]} twice in {self._space(keys, twice)}, expected each id once")

    def check_gradients(self, keys: Keys, gradients: Float32s) -> None:
        """Refuse gradients float32 [U, dim] that would spoil rows for good.

        Raises:
            ShardError: One is infinite or NaN; names space and id.
        """
        bad = first_row_not_finite(gradients.view(np.uint32))
        if bad >= 0:
            raise ShardError(
                f"gradients: given infinity or NaN for id {keys.ids[bad]} of {self._space(keys, bad)}, "
                "expected finite numbers"
            )

    def _space(self, keys: Keys, place: int) -> str:
        return f"space {list(self.spec.spaces)[int(keys.spaces[place])]}"

    def read(self, keys: Keys) -> Float32s:
        """See `EmbeddingTable.read`; of checked keys."""
        return self.table.read(keys)

    def update(self, keys: Keys, gradients: Float32s) -> None:
        """See `EmbeddingTable.update`; of checked keys."""
        self.table.update(keys, gradients)

    def part(self) -> Columns:
        """This shard's part of the table as raw columns; see `table_parts`."""
        state = self.table.state_dict()
        return to_part(state, replace(TableHeader.read(state), spaces=self.spec.header().spaces))

    def load(self, parts: Sequence[Columns]) -> None:
        """Become this shard's part of a saved table.

        Args:
            parts: Of any number of shards, or the one state of a table in one process.

        Raises:
            CheckpointError: It was saved with other spaces, dimension or seed; both sides are in the text.
        """
        headers = [TableHeader.read(part) for part in parts]
        for header in headers:
            header.check(self.spec.header())
        spaces = TableHeader.of(self.table.spaces, self.spec.embedding_dim, self.spec.seed).spaces
        self.table.load_state_dict(owned_state(parts, self.plan, self.shard, replace(headers[0], spaces=spaces)))
