"""What has happened since the last checkpoint and reaches the disk with the next one."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
from torch import Tensor

from headrace.logs import write_rejects
from headrace.training.run_folder import RunFolder

__all__ = ["UncommittedOutput"]


class UncommittedOutput:
    """Rejected rows, and the rows each step trained on, that no checkpoint counts yet."""

    def __init__(self, *, keeps_ledger: bool) -> None:
        """Args: keeps_ledger: Whether to remember the row ids of each step."""
        self._keeps_ledger = keeps_ledger
        self._rejects: list[pa.RecordBatch] = []
        self._steps: list[int] = []
        self._row_ids: list[pa.Array] = []

    def add_step(self, step: int, row_ids: Tensor) -> None:
        """Remember the rows (int64 [B]) a step trained on."""
        if self._keeps_ledger:
            self._steps.append(step)
            self._row_ids.append(pa.array(row_ids.numpy()))

    def add_rejects(self, rejects: Sequence[pa.RecordBatch]) -> None:
        """Remember rejected rows."""
        self._rejects.extend(rejects)

    def write(self, run: RunFolder, number: int) -> None:
        """Write all of it under the number of the checkpoint that is about to count it, and forget it.

        A kill before that checkpoint appears leaves files that `RunFolder.rewind` moves aside.
        """
        if self._rejects:
            write_rejects(run.quarantine, f"{number:08d}", self._rejects)
        if self._steps:
            run.write_ledger(number, self._steps, self._row_ids)
        self._rejects, self._steps, self._row_ids = [], [], []
