"""What a sparse optimizer is: an update rule for one row, applied to unique rows in place; all else is shared.

A file of an optimizer holds its hyper-parameters, its state per row, and its rule twice: for a compiled loop over rows
in host memory, and in torch for rows on a device. Both get the gradient as the update sees it (clipped, with L2) and
weights after decoupled decay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from headrace.compiling import kernel
from headrace.embeddings.ops.hashing import key_stream, mix64
from headrace.embeddings.ops.prefetch import prefetch_row
from headrace.embeddings.storage.row_formats import FORMATS, FP32, round_row, widen_row
from headrace.registry import SPARSE_OPTIMIZERS, NamedConfig, Registry

__all__ = ["Rounding", "Slot", "SparseOptimizer", "SparseOptimizerConfig", "row_kernel"]

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Rows = npt.NDArray[Any]
Seeds = npt.NDArray[np.uint64]

CHUNK = 256  # rows a thread takes at a time


class SparseOptimizerConfig(NamedConfig):
    """Settings that all optimizers of rows share. A job can name your own by its place, as it can a model."""

    registry: ClassVar[Registry[type[SparseOptimizerConfig]]] = SPARSE_OPTIMIZERS

    weight_decay: float = Field(default=0.0, ge=0)
    """Shrinks rows when they are updated; rows without a gradient do not change."""
    weight_decay_mode: Literal["l2", "decoupled"] = "l2"
    """l2: weight_decay * w is added to the gradient. decoupled: w -= lr * weight_decay * w, apart from the update."""
    clip_row_norm: float | None = Field(default=None, gt=0)
    """Maximum gradient norm of a row (L2, duplicates merged); larger gradients are scaled down. None for no limit."""

    @classmethod
    def build(cls, configs: Sequence[Any], embedding_dim: int) -> SparseOptimizer:
        """The optimizer of tables of one dimension.

        Args:
            configs: Of each table, all of this kind.
            embedding_dim: Numbers D of a row.
        """
        raise NotImplementedError(f"{cls.__name__}.build")


class Slot(NamedTuple):
    """One kind of state that an optimizer keeps per row.

    Attributes:
        name: Also in checkpoints.
        per_element: Whether each element of a row has its own; else one number per row.
        initial: The hyper-parameter that a new row's state is filled with; None for zero.
    """

    name: str
    per_element: bool = True
    initial: str | None = None


class Rounding(NamedTuple):
    """How updated rows are stored: random bits are a function of (seed, step, table, id, position) only.

    So they do not depend on where a row lies, in which shard, or in which order ids were admitted.

    Attributes:
        row_format: FP32, BF16 or FP16.
        seed: Random, of this step of the table group.
        table_seeds: uint64 [T].
    """

    row_format: int
    seed: np.uint64
    table_seeds: Seeds

    @classmethod
    def of(cls, row_format: str, seed: int, step: int, table_seeds: Seeds) -> Rounding:
        """For a step of a table group."""
        mixed = mix64(np.uint64(seed & (2**64 - 1)) ^ mix64(np.uint64(step)))
        return cls(FORMATS[row_format], np.uint64(mixed), table_seeds)


class SparseOptimizer:
    """Applies gradients to the rows of one table group; hyper-parameters may differ from table to table.

    Subclasses set `kind` (its name in configs and checkpoints), `slots`, and the three parts of the rule.

    Args:
        configs: Of each table, all of this kind.
        embedding_dim: Numbers D of a row.

    Attributes:
        state_width: Floats W of state per row, all slots one after the other.
        initial_state: float32 [T, W], what a new row's state is.
    """

    kind: ClassVar[str]
    slots: ClassVar[tuple[Slot, ...]] = ()
    update: ClassVar[Callable[..., None]]
    """A compiled loop from `row_kernel`."""

    def __init__(self, configs: Sequence[Any], embedding_dim: int) -> None:
        self._configs = tuple(configs)
        self._shared = np.array([_shared_numbers(config) for config in configs], dtype=np.float32).reshape(-1, 3)
        widths = [embedding_dim if slot.per_element else 1 for slot in self.slots]
        ends = np.cumsum(widths, dtype=np.int64).tolist()
        self.state_width = int(sum(widths))
        self._columns = {
            slot.name: slice(end - width, end) for slot, width, end in zip(self.slots, widths, ends, strict=True)
        }
        self.initial_state = np.zeros((len(configs), self.state_width), dtype=np.float32)
        for slot in self.slots:
            values = [0.0 if slot.initial is None else getattr(config, slot.initial) for config in configs]
            self.initial_state[:, self._columns[slot.name]] = np.array(values, dtype=np.float32)[:, None]

    @staticmethod
    def numbers(config: Any, step: int) -> tuple[float, ...]:
        """The hyper-parameters that both forms of the rule get, from one table's config, at a step from 1 on."""
        raise NotImplementedError

    @staticmethod
    def update_tensors(w: Tensor, g: Tensor, state: Tensor, *numbers: Tensor) -> tuple[Tensor, Tensor]:
        """The rule in torch.

        Args:
            w: float32 [U, D], rows.
            g: float32 [U, D], gradients.
            state: float32 [U, W].
            numbers: float32 [U, 1] each.

        Returns:
            Rows and state after the update.
        """
        raise NotImplementedError

    def slots_of(self, state: Any) -> dict[str, Any]:
        """State [R, W] as one view [R, width] per slot."""
        return {name: state[:, columns] for name, columns in self._columns.items()}

    def apply(
        self,
        weights: Rows,
        state: Float32s,
        rows: Int64s,
        tables: Int32s,
        ids: Int64s,
        gradients: Float32s,
        step: int,
        rounding: Rounding,
    ) -> None:
        """Update rows in place; the result does not depend on the number of threads.

        Args:
            weights: [rows of the group, D], float32 or as `rounding` says.
            state: float32 [rows of the group, W].
            rows: int64 [U], different from each other where they are not 0; row 0 is left alone.
            tables: int32 [U].
            ids: int64 [U].
            gradients: float32 [U, D], already summed over duplicates.
            step: 1 for the first call.
            rounding: How the updated weights are stored.
        """
        numbers = self._numbers(step)
        type(self).update(weights, state, rows, tables, ids, gradients, self._shared, numbers, *rounding)

    def updated(self, w: Tensor, g: Tensor, state: Tensor, tables: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Rows and state after one step, in torch, on the device of `w`; the numbers of `apply` up to rounding.

        Args:
            w: float32 [U, D], the rows.
            g: float32 [U, D], their gradients.
            state: float32 [U, W].
            tables: int64 [U].
            step: 1 for the first.
        """

        def columns(numbers: Float32s) -> list[Tensor]:
            return list(torch.split(torch.from_numpy(numbers).to(w.device)[tables], 1, dim=1))

        decay, decoupled, max_norm = columns(self._shared)
        norm = g.norm(dim=1, keepdim=True)
        g = torch.where((max_norm > 0) & (norm > max_norm), g * (max_norm / norm), g)
        g = g + decay * w
        w = w - decoupled * w
        return self.update_tensors(w, g, state, *columns(self._numbers(step)))

    def _numbers(self, step: int) -> Float32s:
        return np.array([self.numbers(config, step) for config in self._configs], dtype=np.float32)


def row_kernel(update_row: Callable[..., None]) -> Callable[..., None]:
    """The compiled loop of `SparseOptimizer.apply` around a rule.

    Args:
        update_row: An inline kernel that changes a row and its state: (w float32 [D], g float32 [D], states
            float32 [rows, W], row, numbers float32 [T, N], table). Arrays and places, as a view for each row costs 5 %.
    """

    def apply_to_rows(
        weights: Rows,
        states: Float32s,
        rows: Int64s,
        tables: Int32s,
        ids: Int64s,
        gradients: Float32s,
        shared: Float32s,
        numbers: Float32s,
        row_format: int,
        seed: np.uint64,
        table_seeds: Seeds,
    ) -> None:
        dim = weights.shape[1]
        weights_at, states_at = weights.ctypes.data, states.ctypes.data
        for chunk in numba.prange((len(rows) + CHUNK - 1) // CHUNK):
            w, g = np.empty(dim, dtype=np.float32), np.empty(dim, dtype=np.float32)
            bits = w.view(np.uint32)
            for u in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(rows))):
                prefetch_row(weights_at, dim * weights.itemsize, rows, u)
                prefetch_row(states_at, states.shape[1] * states.itemsize, rows, u)
                row, table = rows[u], tables[u]
                if row == 0:
                    continue
                if row_format == FP32:
                    for d in range(dim):
                        w[d] = weights[row, d]
                else:
                    widen_row(weights, row, row_format, w, bits)
                _take_gradient(gradients, u, w, shared, table, g)
                update_row(w, g, states, row, numbers, table)
                if row_format == FP32:
                    for d in range(dim):
                        weights[row, d] = w[d]
                else:
                    round_row(weights, row, row_format, w, bits, seed, key_stream(table_seeds[table], ids[u]))

    # Code on disk is named after the function.
    apply_to_rows.__name__ = apply_to_rows.__qualname__ = f"apply_{update_row.__module__.rpartition('.')[2]}"
    return kernel(parallel=True)(apply_to_rows)


def _shared_numbers(config: Any) -> tuple[float, float, float]:
    """L2, learning rate times decoupled decay, maximum norm of a gradient (0 for no limit)."""
    is_l2 = config.weight_decay_mode == "l2"
    decay = config.weight_decay
    return decay if is_l2 else 0.0, 0.0 if is_l2 else config.lr * decay, config.clip_row_norm or 0.0


@kernel(inline=True)
def _take_gradient(gradients: Float32s, u: int, w: Float32s, shared: Float32s, table: int, out: Float32s) -> None:
    """The gradient of key u as the update sees it, float32 [D]: clipped, plus L2 of `w`; then `w` decays."""
    decay, decoupled, max_norm = shared[table, 0], shared[table, 1], shared[table, 2]
    scale = np.float32(1.0)
    if max_norm > 0:
        squares = np.float32(0.0)
        for d in range(len(out)):
            squares += gradients[u, d] * gradients[u, d]
        if squares > max_norm * max_norm:
            scale = max_norm / np.sqrt(squares)
    for d in range(len(out)):
        out[d] = scale * gradients[u, d] + decay * w[d]
    if decoupled > 0:
        for d in range(len(w)):
            w[d] -= decoupled * w[d]
