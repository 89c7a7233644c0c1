"""State of a table group as named raw columns, for checkpoints; contains only rows that differ from a new group.

    header              uint8, JSON: format version, tables, dimension, seed, step, version, window starts, cursors
    rows    int64 [R], ascending: row numbers in the storage
    tables, ids   int32, int64 [R]: key of each row (an id in a direct or hashed table is the row within the table)
    weights    [R, dim]: float32, or uint16 bits of bf16 or fp16 rows; int8 [R, dim + 1] with the exponents of int8 rows
    slot.NAME           float32 [R, width] for each slot of the optimizer
    version, frequency  int64, int32 [R]
    pending.tables, pending.ids, pending.sightings, pending.last_seen       ids that are not admitted yet
    removed.version, removed.tables, removed.ids    ids that lost their rows, back to the oldest cursor

Arrays are contiguous, in the machine's (little-endian) byte order.
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
    """Properties that a saved table group and the loading group must share, and the group's counters.

    Attributes:
        tables: Settings that determine row numbers and initial values; learning rates may change between jobs.
        embedding_dim: Dimension of rows.
        seed: Seed of initial values.
        step: Number of updates.
        version: Number of changes, see `TableGroup`.
        window_starts: Start versions of the recent windows.
        cursors: Version of each consumer of changes.
        removed_from: See `ChangeLog`.
        retention: Budget of all partitions and retention policy; None without a budget.
        partition: Which partition of the ids this is, see `Partition.to_dict`; None if there are no others.
        admission_counts: Occurrence at which an id of each collisionless table gets its row; with 0, ids without a row
            read initial values. It may change between jobs. Empty in states of earlier releases.
    """

    tables: list[dict[str, Any]]
    embedding_dim: int
    seed: int
    step: int = 0
    version: int = 0
    window_starts: Sequence[int] = (0,)
    cursors: Mapping[str, int] = field(default_factory=dict)
    removed_from: int = 0
    retention: str | None = None
    partition: Mapping[str, Any] | None = None
    admission_counts: Sequence[int] = ()
    format_version: int = FORMAT_VERSION

    @classmethod
    def of(cls, tables: Sequence[TableConfig], seed: int) -> TableGroupHeader:
        """The header of a new group."""
        described = [
            {
                "name": table.name,
                "kind": table.kind,
                "num_embeddings": table.num_embeddings,
                "init_scale": table.scale,
                "optimizer": table.optimizer.kind,
                "reduction": table.optimizer.reduction,
                "rows": table.rows,
            }
            for table in tables
        ]
        counts = [table.admission_count for table in tables]
        return cls(described, dim_of_tables(tables), seed, admission_counts=counts)

    @classmethod
    def read(cls, state: Columns) -> TableGroupHeader:
        """The header of a state.

        Raises:
            VersionMismatch: The state has a different format.
        """
        values = json.loads(state["header"].tobytes())
        if values.get("format_version") != FORMAT_VERSION:
            raise VersionMismatch(
                f"table group: saved in format {values.get('format_version')}, expected {FORMAT_VERSION} or 2"
            )
        values["tables"] = [{"reduction": "mean"} | table for table in values["tables"]]  # earlier states have none
        return cls(**values)

    def to_column(self) -> npt.NDArray[np.uint8]:
        """The header as JSON bytes."""
        return _json_column(asdict(self))

    def check(self, group: TableGroupHeader) -> None:
        """Check that this state can be loaded into a group.

        Raises:
            CheckpointError: The group differs; the text names the first difference, with the saved and the configured
                value.
        """
        pairs: list[tuple[str, object, object]] = [
            ("embedding_dim", self.embedding_dim, group.embedding_dim),
            ("seed", self.seed, group.seed),
            ("embeddings.budget", self.retention or "none", group.retention or "none"),
            ("tables", [s["name"] for s in self.tables], [s["name"] for s in group.tables]),
        ]
        for mine, theirs in zip(self.tables, group.tables, strict=False):
            pairs += [(f"{mine['name']}.{key}", mine[key], theirs.get(key)) for key in mine]
        for name, saved, configured in pairs:
            if saved != configured:
                raise CheckpointError(f"table group: {name} was saved as {saved}, but the job says {configured}")


def upgraded(state: Columns) -> Columns:
    """Convert a saved state to the current format. Format 2 is also accepted; it differs in names only."""
    header = json.loads(state["header"].tobytes())
    if header.get("format_version") != 2:
        return state
    header |= {"tables": header.pop("spaces"), "format_version": FORMAT_VERSION}
    renamed = {name.replace("spaces", "tables"): column for name, column in state.items()}
    return renamed | {"header": _json_column(header)}


def _json_column(values: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
    return np.frombuffer(json.dumps(values).encode(), dtype=np.uint8).copy()


def pending_columns(pending: IdHistory) -> Columns:
    """Convert ids that are not admitted yet to columns."""
    return {f"pending.{name}": getattr(pending, name) for name in PENDING}


def pending_of(state: Columns) -> IdHistory:
    """Inverse of `pending_columns`."""
    return IdHistory(**{name: state[f"pending.{name}"] for name in PENDING})
