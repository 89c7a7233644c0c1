"""What a sparse optimizer is: a kernel that applies merged gradients to unique rows in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Float32s", "Int32s", "Int64s", "Slots", "SparseOptimizer", "hyper_parameters"]

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Slots = Mapping[str, Float32s]


class SparseOptimizer(Protocol):
    """Applies gradients to the rows of one table; hyper-parameters may differ from space to space.

    Attributes:
        kind: Its name in configs, also written to checkpoints.
        slot_widths: Floats of state per row: slot name -> 1 or the embedding dimension. Arrays are [rows, width].
        slot_values: float32 [S] per slot, what a new row's state is filled with.
    """

    kind: str
    slot_widths: Mapping[str, int]
    slot_values: Mapping[str, Float32s]

    def apply(
        self, weights: Float32s, slots: Slots, rows: Int64s, spaces: Int32s, gradients: Float32s, step: int
    ) -> None:
        """Update rows in place; the result does not depend on the number of threads.

        Args:
            weights: float32 [rows of the table, dim].
            slots: As `slot_widths` says.
            rows: int64 [U], different from each other where they are not 0; row 0 is left alone.
            spaces: int32 [U].
            gradients: float32 [U, dim], already summed over duplicates.
            step: 1 for the first call.
        """


def hyper_parameters(configs: Sequence[Any], *names: str) -> Float32s:
    """float32 [S, len(names)], one row of hyper-parameters per space."""
    table = [[getattr(config, name) for name in names] for config in configs]
    return np.array(table, dtype=np.float32).reshape(len(configs), len(names))
