"""A table as named raw columns, for checkpoints: only rows that differ from a new table.

    header              uint8, JSON: format version, spaces, dimension, seed, step, version, window starts, cursors
    rows                int64 [R], ascending: where each row lies in its storage
    spaces, ids         int32, int64 [R]: whose it is (an id in a direct or hashed space is the row within the space)
    weights             [R, dim]: float32, or uint16, the bits of bf16 or fp16 rows
    slot.NAME           float32 [R, width] for each slot of the optimizer
    version, frequency  int64, int32 [R]
    pending.spaces, pending.ids, pending.sightings, pending.last_seen       ids that are not admitted yet
    removed.version, removed.spaces, removed.ids       ids that lost their rows, as far back as the oldest cursor

Arrays are contiguous and in the machine's (little-endian) order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.embeddings.changes.log import Columns
from headrace.embeddings.config import TableConfig
from headrace.embeddings.tables.lifecycle.policies import IdHistory
from headrace.errors import CheckpointError, VersionMismatch

__all__ = ["Columns", "TableHeader", "pending_columns", "pending_of"]

FORMAT_VERSION = 2
PENDING = ("spaces", "ids", "sightings", "last_seen")


@dataclass(frozen=True)
class TableHeader:
    """What must agree between a saved table and the one that loads it, and its clocks.

    Attributes:
        spaces: What decides where rows are and what they begin with; learning rates may change between jobs.
        embedding_dim: Of rows.
        seed: Of first values.
        step: Updates made.
        version: Changes made, see `TableGroup`.
        window_starts: Versions at which the windows still of interest began.
        cursors: Consumers of changes, and the version each has.
        removed_from: See `ChangeLog`.
    """

    spaces: list[dict[str, Any]]
    embedding_dim: int
    seed: int
    step: int = 0
    version: int = 0
    window_starts: Sequence[int] = (0,)
    cursors: Mapping[str, int] = field(default_factory=dict)
    removed_from: int = 0
    format_version: int = FORMAT_VERSION

    @classmethod
    def of(cls, spaces: Mapping[str, TableConfig], embedding_dim: int, seed: int) -> TableHeader:
        """Of a new table."""
        described = [
            {
                "name": name,
                "kind": config.kind,
                "num_embeddings": config.num_embeddings,
                "init_scale": config.scale,
                "optimizer": config.optimizer.kind,
                "rows": config.rows,
            }
            for name, config in spaces.items()
        ]
        return cls(described, embedding_dim, seed)

    @classmethod
    def read(cls, state: Columns) -> TableHeader:
        """The header of a state.

        Raises:
            VersionMismatch: Of another format.
        """
        values = json.loads(state["header"].tobytes())
        if values.get("format_version") != FORMAT_VERSION:
            raise VersionMismatch(
                f"embedding table: saved in format {values.get('format_version')}, expected {FORMAT_VERSION}"
            )
        return cls(**values)

    def to_column(self) -> npt.NDArray[np.uint8]:
        """As JSON bytes."""
        return np.frombuffer(json.dumps(asdict(self)).encode(), dtype=np.uint8).copy()

    def check(self, table: TableHeader) -> None:
        """Refuse to be loaded into a table that would read it differently.

        Raises:
            CheckpointError: Names the first difference, saved and configured.
        """
        pairs: list[tuple[str, object, object]] = [
            ("embedding_dim", self.embedding_dim, table.embedding_dim),
            ("seed", self.seed, table.seed),
            ("spaces", [s["name"] for s in self.spaces], [s["name"] for s in table.spaces]),
        ]
        for mine, theirs in zip(self.spaces, table.spaces, strict=False):
            pairs += [(f"{mine['name']}.{key}", mine[key], theirs.get(key)) for key in mine]
        for name, saved, configured in pairs:
            if saved != configured:
                raise CheckpointError(f"embedding table: {name} was saved as {saved}, but the job says {configured}")


def pending_columns(pending: IdHistory) -> Columns:
    """Ids that are not admitted yet, as columns."""
    return {f"pending.{name}": getattr(pending, name) for name in PENDING}


def pending_of(state: Columns) -> IdHistory:
    """The opposite of `pending_columns`."""
    return IdHistory(**{name: state[f"pending.{name}"] for name in PENDING})
