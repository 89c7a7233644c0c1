"""Base of sparse optimizers, which apply an update rule in place to unique rows; everything but the rule is shared.

Each optimizer has a file with its hyper-parameters, its state per row, and its rule in two forms: for a compiled loop
over rows in host memory, and in torch for rows on a device. Both receive the gradient after clipping and L2, and
weights after decoupled decay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Self

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
from headrace.errors import ConfigError
from headrace.registry import SPARSE_OPTIMIZERS, NamedConfig, Registry

__all__ = ["Rounding", "Slot", "SparseOptimizer", "SparseOptimizerConfig", "row_kernel"]

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Rows = npt.NDArray[Any]
Seeds = npt.NDArray[np.uint64]

CHUNK = 256  # rows per task of a thread


class SparseOptimizerConfig(NamedConfig):
    """Settings common to all sparse optimizers. A job can use your own optimizer by its import path, as with models."""

    registry: ClassVar[Registry[type[SparseOptimizerConfig]]] = SPARSE_OPTIMIZERS

    weight_decay: float = Field(default=0.0, ge=0)
    """Shrinks rows when they are updated; rows without a gradient do not change."""
    weight_decay_mode: Literal["l2", "decoupled"] = "l2"
    """l2: weight_decay * w is added to the gradient. decoupled: w -= lr * weight_decay * w, apart from the update."""
    clip_row_norm: float | None = Field(default=None, gt=0)
    """Maximum gradient norm of a row (L2, duplicates merged); larger gradients are scaled down. None for no limit."""
    reduction: Literal["mean", "sum"] = "mean"
    """The loss whose gradient updates a row, and fills its state: the mean over the rows of the batch, or their sum.
    With sum, what a row of the log adds to an accumulator does not depend on the size of its batch."""

    @classmethod
    def build(cls, configs: Sequence[Any], embedding_dim: int) -> SparseOptimizer:
        """Create the optimizer for tables of one dimension.

        Args:
            configs: Configs of the tables, all of this kind.
            embedding_dim: Dimension D of rows.
        """
        raise NotImplementedError(f"{cls.__name__}.build")

    def with_lr_factor(self, factor: float) -> Self:
        """A copy with `factor` times the learning rate, for a step of a learning-rate schedule.

        Raises:
            ConfigError: The rate of this optimizer cannot change from step to step.
        """
        rate = dict(self).get("lr")
        if rate is None:
            raise ConfigError(f"optimizer {self.kind}: has no lr, expected one with a learning-rate schedule")
        return self.model_copy(update={"lr": rate * factor})


class Slot(NamedTuple):
    """State that an optimizer keeps per row.

    Attributes:
        name: Name, also used in checkpoints.
        per_element: Whether there is a value per element of a row, rather than one per row.
        initial: Name of the hyper-parameter that is the initial value; None for zero.
        is_sum: Whether it is a sum over the updates of a row, so that a part of the updates has a part of it.
    """

    name: str
    per_element: bool = True
    initial: str | None = None
    is_sum: bool = False


class Rounding(NamedTuple):
    """Stochastic rounding of updated rows; random bits are a function of (seed, step, table, id, position) only.

    So they do not depend on a row's number, its shard, or the order in which ids were admitted.

    Attributes:
        row_format: FP32, BF16, FP16 or INT8.
        seed: Seed of this step of the table group.
        table_seeds: uint64 [T], seed of each table.
    """

    row_format: int
    seed: np.uint64
    table_seeds: Seeds

    @classmethod
    def of(cls, row_format: str, seed: int, step: int, table_seeds: Seeds) -> Rounding:
        """The rounding for a step of a table group."""
        mixed = mix64(np.uint64(seed & (2**64 - 1)) ^ mix64(np.uint64(step)))
        return cls(FORMATS[row_format], np.uint64(mixed), table_seeds)


class SparseOptimizer:
    """Applies gradients to the rows of one table group; hyper-parameters may differ between tables.

    Subclasses define `kind` (the name in configs and checkpoints), `slots`, and the three parts of the update rule.

    Args:
        configs: Configs of the tables, all of this kind.
        embedding_dim: Dimension D of rows.

    Attributes:
        state_width: Number W of state floats per row, all slots concatenated.
        initial_state: float32 [T, W], initial state of a row in each table.
        is_sum: bool [W], whether each of them is part of a sum, see `Slot`.
    """

    kind: ClassVar[str]
    slots: ClassVar[tuple[Slot, ...]] = ()
    update: ClassVar[Callable[..., None]]
    """The compiled loop, made by `row_kernel`."""

    def __init__(self, configs: Sequence[Any], embedding_dim: int) -> None:
        distinct = {repr(config): config for config in configs}  # usually one for all tables
        number_of = {name: number for number, name in enumerate(distinct)}
        self._configs = list(distinct.values())
        self._config_of_table = np.array([number_of[repr(config)] for config in configs], dtype=np.int64)
        self._shared = _shared_numbers(self._configs)[self._config_of_table]
        self._sums = np.array([config.reduction == "sum" for config in configs])
        self._has_sums = bool(self._sums.any())
        self._numbers_of_last_step: tuple[list[tuple[float, ...]], Float32s] = [], np.empty((0, 0), dtype=np.float32)
        widths = [embedding_dim if slot.per_element else 1 for slot in self.slots]
        ends = np.cumsum(widths, dtype=np.int64).tolist()
        self.state_width = int(sum(widths))
        self._columns = {
            slot.name: slice(end - width, end) for slot, width, end in zip(self.slots, widths, ends, strict=True)
        }
        self.is_sum = np.repeat([slot.is_sum for slot in self.slots], widths).astype(np.bool_)
        self.initial_state = np.zeros((len(configs), self.state_width), dtype=np.float32)
        for slot in self.slots:
            values = [0.0 if slot.initial is None else getattr(config, slot.initial) for config in configs]
            self.initial_state[:, self._columns[slot.name]] = np.array(values, dtype=np.float32)[:, None]

    @staticmethod
    def numbers(config: Any, step: int) -> tuple[float, ...]:
        """The hyper-parameters passed to both forms of the rule, from one table's config; steps count from 1."""
        raise NotImplementedError

    @staticmethod
    def update_tensors(w: Tensor, g: Tensor, state: Tensor, *numbers: Tensor) -> tuple[Tensor, Tensor]:
        """The update rule in torch.

        Args:
            w: Rows, float32 [U, D].
            g: Gradients, float32 [U, D].
            state: Optimizer state, float32 [U, W].
            numbers: Hyper-parameters of each row's table, float32 [U, 1] each.

        Returns:
            Rows and state after the update.
        """
        raise NotImplementedError

    def slots_of(self, state: Any) -> dict[str, Any]:
        """Split state [R, W] into one view [R, width] per slot."""
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
        *,
        num_rows: int = 1,
        lr_factor: float = 1.0,
    ) -> None:
        """Update rows in place; the result does not depend on the number of threads.

        Args:
            weights: Rows of the group, [capacity, D], in the storage dtype of `rounding`.
            state: Optimizer state of the group, float32 [capacity, W].
            rows: Row numbers, int64 [U], unique except for 0; row 0 is not changed.
            tables: Table of each row, int32 [U].
            ids: Id of each row, int64 [U].
            gradients: Gradients with duplicates summed, float32 [U, D].
            step: Number of the step, from 1.
            rounding: Rounding of updated weights.
            num_rows: Rows of the batch, of all trainers.
            lr_factor: Factor of the learning rates in this step.
        """
        shared, numbers = self._numbers(step, num_rows, lr_factor)
        type(self).update(weights, state, rows, tables, ids, gradients, shared, numbers, *rounding)

    def updated(
        self,
        w: Tensor,
        g: Tensor,
        state: Tensor,
        tables: Tensor,
        step: int,
        *,
        num_rows: int = 1,
        lr_factor: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Compute rows and state after one step in torch, on the device of `w`; equal to `apply` up to rounding.

        Args:
            w: Rows, float32 [U, D].
            g: Gradients, float32 [U, D].
            state: Optimizer state, float32 [U, W].
            tables: Table of each row, int64 [U].
            step: Number of the step, from 1.
            num_rows: Rows of the batch, of all trainers.
            lr_factor: Factor of the learning rates in this step.
        """

        def columns(numbers: Float32s) -> list[Tensor]:
            return list(torch.split(torch.from_numpy(numbers).to(w.device)[tables], 1, dim=1))

        shared, numbers = self._numbers(step, num_rows, lr_factor)
        decay, decoupled, max_norm, scale = columns(shared)
        g = scale * g
        norm = g.norm(dim=1, keepdim=True)
        g = torch.where((max_norm > 0) & (norm > max_norm), g * (max_norm / norm), g)
        g = g + decay * w
        w = w - decoupled * w
        return self.update_tensors(w, g, state, *columns(numbers))

    def _numbers(self, step: int, num_rows: int, lr_factor: float) -> tuple[Float32s, Float32s]:
        """Hyper-parameters of each table in a step: those that all optimizers share [T, 4], and those of the rule."""
        configs, shared = self._configs, self._shared
        if lr_factor != 1.0:
            configs = [config.with_lr_factor(lr_factor) for config in configs]
            shared = _shared_numbers(configs)[self._config_of_table]
        if self._has_sums:
            shared = shared.copy()
            shared[self._sums, 3] = num_rows
        numbers = [self.numbers(config, step) for config in configs]
        if numbers != self._numbers_of_last_step[0]:
            rows = np.array(numbers, dtype=np.float32)[self._config_of_table]
            self._numbers_of_last_step = numbers, rows
        return shared, self._numbers_of_last_step[1]


def row_kernel(update_row: Callable[..., None]) -> Callable[..., None]:
    """Compile the loop of `SparseOptimizer.apply` for an update rule.

    Args:
        update_row: An inline kernel that updates a row and its state: (w float32 [D], g float32 [D], states float32
            [rows, W], row, numbers float32 [T, N], table). It takes arrays and indices, because a view per row costs 5
            %.
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
        dim, width = gradients.shape[1], weights.shape[1]
        weights_at, states_at = weights.ctypes.data, states.ctypes.data
        for chunk in numba.prange((len(rows) + CHUNK - 1) // CHUNK):
            w, g = np.empty(dim, dtype=np.float32), np.empty(dim, dtype=np.float32)
            bits = w.view(np.uint32)
            for u in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(rows))):
                prefetch_row(weights_at, width * weights.itemsize, rows, u)
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

    # The compilation cache is keyed by the function's name.
    apply_to_rows.__name__ = apply_to_rows.__qualname__ = f"apply_{update_row.__module__.rpartition('.')[2]}"
    return kernel(parallel=True)(apply_to_rows)


def _shared_numbers(configs: Sequence[Any]) -> Float32s:
    """Numbers of each table [T, 4]: L2, learning rate times decoupled decay, maximum gradient norm (0 for no limit),
    and factor of the gradient."""

    def of(config: Any) -> tuple[float, float, float, float]:
        is_l2 = config.weight_decay_mode == "l2"
        decay = config.weight_decay
        return decay if is_l2 else 0.0, 0.0 if is_l2 else config.lr * decay, config.clip_row_norm or 0.0, 1.0

    return np.array([of(config) for config in configs], dtype=np.float32).reshape(-1, 4)


@kernel(inline=True)
def _take_gradient(gradients: Float32s, u: int, w: Float32s, shared: Float32s, table: int, out: Float32s) -> None:
    """Scale and clip the gradient of key u, add L2 of `w`, write it to `out` float32 [D], then apply decoupled decay to
    `w`."""
    decay, decoupled, max_norm, scale = shared[table, 0], shared[table, 1], shared[table, 2], shared[table, 3]
    if max_norm > 0:
        squares = np.float32(0.0)
        for d in range(len(out)):
            squares += gradients[u, d] * gradients[u, d]
        if scale * scale * squares > max_norm * max_norm:
            scale = max_norm / np.sqrt(squares)
    for d in range(len(out)):
        out[d] = scale * gradients[u, d] + decay * w[d]
    if decoupled > 0:
        for d in range(len(w)):
            w[d] -= decoupled * w[d]
