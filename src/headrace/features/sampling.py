"""Sampling of whole rows, for a pipeline's filter: a function of seed and row id, so the same rows in every run."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from headrace.compiling import kernel
from headrace.config import Config
from headrace.errors import DataError
from headrace.features.kernels.lists import sample
from headrace.features.operators.lists import threshold
from headrace.logs.pieces import ROW_ID
from headrace.messages import shorten_list

__all__ = ["RowSampling"]


class RowSampling(Config):
    """Keeps each row with a probability; rows with a positive label always, where one is named.

    Training on a sample of the negatives needs their weight raised to 1 / probability for calibrated scores.

    Attributes:
        probability: Of keeping a row.
        seed: Another seed keeps other rows.
        keep_label: A label column; rows where it is above 0 are kept in any case.
    """

    probability: float = Field(ge=0, le=1)
    seed: int = Field(default=0, ge=0, lt=2**63)
    keep_label: str | None = None

    def __call__(self, batch: pa.RecordBatch) -> pa.Array:
        """Which rows to keep, as booleans.

        Raises:
            DataError: If the row id or the label is missing.
        """
        for name in (ROW_ID, self.keep_label):
            if name is not None and name not in batch.schema.names:
                raise DataError(f"column {name}: missing in the batch, which has {shorten_list(batch.schema.names)}")
        row_ids = batch.column(ROW_ID).to_numpy(zero_copy_only=False)
        keep = np.empty(batch.num_rows, np.bool_)
        _sample_rows(row_ids, self.seed, threshold(self.probability), keep)
        if self.keep_label is not None:
            keep |= batch.column(self.keep_label).to_numpy(zero_copy_only=False) > 0
        return pa.array(keep)


@kernel()
def _sample_rows(row_ids: NDArray[np.int64], seed: int, limit: int, keep: NDArray[np.bool_]) -> None:
    for row in range(row_ids.size):
        keep[row] = sample(row_ids[row], seed, limit)
