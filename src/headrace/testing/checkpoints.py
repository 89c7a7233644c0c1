"""`checkpoint_arrays`: what the newest checkpoint of a run holds, for comparisons bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.embeddings.tables.partitions import separated_columns
from headrace.errors import CheckpointError
from headrace.training import CheckpointFolder

__all__ = ["checkpoint_arrays"]


def checkpoint_arrays(run: Path) -> dict[str, npt.NDArray[Any]]:
    """Dense parameters, their optimizer state and metrics, and the whole state of each partition of the tables.

    Rows are ascending, so two runs with the same state give the same arrays wherever their rows are. Keys are
    `GROUP.NAME`, and `TABLE_GROUP-PARTITION.COLUMN`.

    Args:
        run: Folder of the run.

    Raises:
        CheckpointError: There is no checkpoint, or a newer one is damaged.
    """
    snapshot, refused = CheckpointFolder(run / "checkpoints").load_latest()
    if snapshot is None or refused:
        raise CheckpointError(f"{run}: no checkpoint, or damaged ones: {refused}")
    found = {f"{group}.{name}": array for group, part in snapshot.arrays.items() for name, array in part.items()}
    for table in {*snapshot.columns, *snapshot.parts}:
        for number, state in enumerate(snapshot.parts.get(table) or separated_columns(snapshot.columns[table])):
            order = np.argsort(state["rows"])
            for name, column in state.items():
                is_of_rows = not name.startswith(("header", "retention", "pending", "removed"))
                found[f"{table}-{number}.{name}"] = np.array(column)[order] if is_of_rows else np.array(column)
    return found
