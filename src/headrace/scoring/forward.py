"""`Forward`: the outputs of a model for a batch, the same bits for a row whatever other rows the batch has."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from headrace.models.row_bits import pad_to_tile, rows_for_equal_bits
from headrace.tensors import Batch

__all__ = ["Forward"]


class Forward:
    """Calls a model in evaluation. Thread-safe if the model is.

    So predictions do not depend on the batch size, on the order of rows, or on requests that are answered together.
    Batches are filled up with copies of their last row where products of fewer rows could differ in the last bit, see
    `models.row_bits`.

    Args:
        model: A model: `Batch` -> [B, L].
        least_rows: Result of `rows_for_equal_bits`; None to measure it.
    """

    def __init__(self, model: nn.Module, least_rows: int | None = None) -> None:
        self.model = model.eval()
        self.least_rows = rows_for_equal_bits(model) if least_rows is None else least_rows

    def padded(self, num_rows: int) -> int:
        """The number of rows to which batches of `num_rows` are filled up."""
        return pad_to_tile(num_rows, self.least_rows)

    def __call__(self, batch: Batch) -> Tensor:
        """Compute float32 [B, L]."""
        num_rows = len(batch)
        padded = self.padded(num_rows)
        with torch.inference_mode():
            if num_rows and padded != num_rows:
                batch = batch.take(torch.arange(padded).clamp_(max=num_rows - 1))
            outputs: Tensor = self.model(batch)
        return outputs[:num_rows]
