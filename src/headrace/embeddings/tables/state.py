"""A table group as named raw columns, for checkpoints: only rows that differ from a new group.

    header              uint8, JSON: format version, tables, dimension, seed, step, version, window starts, cursors
    rows                int64 [R], ascending: where each row lies in its storage
    tables, ids         int32, int64 [R]: whose it is (an id in a direct or hashed table is the row within the table)
    weights             [R, dim]: float32, or uint16, the bits of bf16 or fp16 rows
    slot.NAME           float32 [R, width] for each slot of the optimizer
    version, frequency  int64, int32 [R]
    pending.tables, pending.ids, pending.sightings, pending.last_seen       ids that are not admitted yet
    removed.version, removed.tables, removed.ids       ids that lost their rows, as far back as the oldest cursor

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
from headrace.embeddings.config import TableConfig, dim_of_tables
from headrace.embeddings.tables.lifecycle.policies import IdHistory
from headrace.errors import CheckpointError, VersionMismatch

__all__ = ["Columns", "TableGroupHeader", "pending_columns", "pending_of", "upgraded"]

FORMAT_VERSION = 3
PENDING = ("tables", "ids", "sightings", "last_seen")


@dataclass(frozen=True)
class TableGroupHeader:
    """What must agree between a saved table group and the one that loads it, and its clocks.

    Attributes:
        tables: What decides where rows are and what they begin with; learning rates may change between jobs.
        embedding_dim: Of rows.
        seed: Of first values.
        step: Updates made.
        version: Changes made, see `TableGroup`.
        window_starts: Versions at which the windows still of interest began.
        cursors: Consumers of changes, and the version each has.
        removed_from: See `ChangeLog`.
    """

    tables: list[dict[str, Any]]
    embedding_dim: int
    seed: int
    step: int = 0
    version: int = 0
    window_starts: Sequence[int] = (0,)
    cursors: Mapping[str, int] = field(default_factory=dict)
    removed_from: int = 0
    format_version: int = FORMAT_VERSION

    @classmethod
    def of(cls, tables: Sequence[TableConfig], seed: int) -> TableGroupHeader:
        """Of a new group."""
        described = [
            {
                "name": table.name,
                "kind": table.kind,
                "num_embeddings": table.num_embeddings,
                "init_scale": table.scale,
                "optimizer": table.optimizer.kind,
                "rows": table.rows,
            }
            for table in tables
        ]
        return cls(described, dim_of_tables(tables), seed)

    @classmethod
    def read(cls, state: Columns) -> TableGroupHeader:
        """The header of a state.

        Raises:
            VersionMismatch: Of another format.
        """
        values = json.loads(state["header"].tobytes())
        if values.get("format_version") != FORMAT_VERSION:
            raise VersionMismatch(
                f"table group: saved in format {values.get('format_version')}, expected {FORMAT_VERSION} or 2"
            )
        return cls(**values)

    def to_column(self) -> npt.NDArray[np.uint8]:
        """As JSON bytes."""
        return _json_column(asdict(self))

    def check(self, group: TableGroupHeader) -> None:
        """Refuse to be loaded into a group that would read it differently.

        Raises:
            CheckpointError: Names the first difference, saved and configured.
        """
        pairs: list[tuple[str, object, object]] = [
            ("embedding_dim", self.embedding_dim, group.embedding_dim),
            ("seed", self.seed, group.seed),
            ("tables", [s["name"] for s in self.tables], [s["name"] for s in group.tables]),
        ]
        for mine, theirs in zip(self.tables, group.tables, strict=False):
            pairs += [(f"{mine['name']}.{key}", mine[key], theirs.get(key)) for key in mine]
        for name, saved, configured in pairs:
            if saved != configured:
                raise CheckpointError(f"table group: {name} was saved as {saved}, but the job says {configured}")


def upgraded(state: Columns) -> Columns:
    """A saved state in the current format. Format 2 is read too: it differs in names, and calls tables spaces."""
    header = json.loads(state["header"].tobytes())
    if header.get("format_version") != 2:
        return state
    header |= {"tables": header.pop("spaces"), "format_version": FORMAT_VERSION}
    renamed = {name.replace("spaces", "tables"): column for name, column in state.items()}
    return renamed | {"header": _json_column(header)}


def _json_column(values: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
    return np.frombuffer(json.dumps(values).encode(), dtype=np.uint8).copy()


def pending_columns(pending: IdHistory) -> Columns:
    """Ids that are not admitted yet, as columns."""
    return {f"pending.{name}": getattr(pending, name) for name in PENDING}


def pending_of(state: Columns) -> IdHistory:
    """The opposite of `pending_columns`."""
    return IdHistory(**{name: state[f"pending.{name}"] for name in PENDING})
