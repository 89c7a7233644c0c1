"""What the newest checkpoint of a run holds, for comparing runs."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.training import CheckpointFolder, Snapshot


def newest_snapshot(run: Path) -> Snapshot:
    folder = CheckpointFolder(run / "checkpoints")
    return folder.load(folder.numbers()[-1])


def parameters(snapshot: Snapshot) -> dict[str, npt.NDArray[Any]]:
    """Dense parameters, and table columns in the order of (table, id): rows may lie elsewhere after a restart."""
    found = {f"{group}.{name}": array for group, of in snapshot.arrays.items() for name, array in of.items()}
    for table, columns in snapshot.columns.items():
        order = np.lexsort((columns["ids"], columns["tables"]))
        for name in ("tables", "ids", "weights", "slot.accumulator", "frequency", "version"):
            found[f"{table}.{name}"] = np.asarray(columns[name])[order]
    return found
