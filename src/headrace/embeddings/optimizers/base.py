"""What a sparse optimizer is: a kernel that applies merged gradients to unique rows; and what all kernels share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field

from headrace.compiling import kernel
from headrace.config import Config
from headrace.embeddings.ops.hashing import mix64
from headrace.embeddings.storage.row_formats import FORMATS

__all__ = [
    "CHUNK",
    "Float32s",
    "Int32s",
    "Int64s",
    "Rounding",
    "Slots",
    "SparseOptimizer",
    "SparseOptimizerConfig",
    "common_parameters",
    "decay_weights",
    "hyper_parameters",
    "take_gradient",
]

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Slots = Mapping[str, Float32s]

CHUNK = 256  # rows a thread takes at a time


class SparseOptimizerConfig(Config):
    """What every optimizer of rows may be told."""

    weight_decay: float = Field(default=0.0, ge=0)
    """Pulls rows to zero when they are updated; rows without a gradient stay."""
    weight_decay_mode: Literal["l2", "decoupled"] = "l2"
    """l2: weight_decay * w is added to the gradient. decoupled: w -= lr * weight_decay * w, beside the update."""
    clip_row_norm: float | None = Field(default=None, gt=0)
    """Longest gradient of one row (L2 norm, duplicates merged); a longer one is scaled down. None for any."""


class Rounding(NamedTuple):
    """How updated rows are stored.

    Attributes:
        row_format: FP32, BF16 or FP16.
        seed: Random, of this step of the table.
    """

    row_format: int
    seed: np.uint64

    @classmethod
    def of(cls, row_format: str, seed: int, step: int) -> Rounding:
        """For a step of a table."""
        mixed = mix64(np.uint64(seed & (2**64 - 1)) ^ mix64(np.uint64(step)))
        return cls(FORMATS[row_format], np.uint64(mixed))


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
        self,
        weights: npt.NDArray[Any],
        slots: Slots,
        rows: Int64s,
        spaces: Int32s,
        gradients: Float32s,
        step: int,
        rounding: Rounding,
    ) -> None:
        """Update rows in place; the result does not depend on the number of threads.

        Args:
            weights: [rows of the table, dim], float32 or what `rounding` says.
            slots: As `slot_widths` says.
            rows: int64 [U], different from each other where they are not 0; row 0 is left alone.
            spaces: int32 [U].
            gradients: float32 [U, dim], already summed over duplicates.
            step: 1 for the first call.
            rounding: How the updated weights are stored.
        """


def hyper_parameters(configs: Sequence[Any], *names: str) -> Float32s:
    """float32 [S, len(names)], one row of hyper-parameters per space."""
    table = [[getattr(config, name) for name in names] for config in configs]
    return np.array(table, dtype=np.float32).reshape(len(configs), len(names))


def common_parameters(configs: Sequence[Any]) -> Float32s:
    """float32 [S, 3]: L2, learning rate times decoupled decay, longest gradient (0 for any)."""
    table = [
        (
            config.weight_decay if config.weight_decay_mode == "l2" else 0.0,
            config.lr * config.weight_decay if config.weight_decay_mode == "decoupled" else 0.0,
            config.clip_row_norm or 0.0,
        )
        for config in configs
    ]
    return np.array(table, dtype=np.float32).reshape(len(configs), 3)


@kernel()
def take_gradient(gradients: Float32s, u: int, weights: Float32s, common: Float32s, space: int, out: Float32s) -> None:
    """The gradient of key u as the update sees it, float32 [dim]: clipped, plus L2 of the row's `weights` [dim]."""
    decay, longest = common[space, 0], common[space, 2]
    scale = np.float32(1.0)
    if longest > 0:
        squares = np.float32(0.0)
        for d in range(len(out)):
            squares += gradients[u, d] * gradients[u, d]
        if squares > longest * longest:
            scale = longest / np.sqrt(squares)
    for d in range(len(out)):
        out[d] = scale * gradients[u, d] + decay * weights[d]


@kernel()
def decay_weights(weights: Float32s, common: Float32s, space: int) -> None:
    """Decoupled decay of a row, float32 [dim], before its update."""
    rate = common[space, 1]
    if rate > 0:
        for d in range(len(weights)):
            weights[d] -= rate * weights[d]
