"""`Batch`: what one training step reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.tensors.inverse_keyed_jagged import InverseKeyedJaggedTensor
from headrace.tensors.keyed_jagged import KeyedJaggedTensor

__all__ = ["Batch"]

MAX_GROUPS_SHOWN = 3


@dataclass(frozen=True, eq=False)
class Batch:
    """Tensors of B rows, ready for a training step.

    Attributes:
        dense: float32 [B, D], columns in the order of the feature plan.
        sparse: Groups of id-list features. Features that do not repeat from row to row sit in one
            `KeyedJaggedTensor`; each group that repeats together is an `InverseKeyedJaggedTensor` of its own.
        labels: float32 [B, L], columns in the order of the schema.
        weights: float32 [B] example weights, or None for all ones.
        row_ids: int64 [B], which rows of the logs these are; what exactly-once is counted in.
    """

    dense: Tensor
    sparse: tuple[KeyedJaggedTensor | InverseKeyedJaggedTensor, ...]
    labels: Tensor
    row_ids: Tensor
    weights: Tensor | None = None

    def __len__(self) -> int:
        return int(self.row_ids.numel())

    def __repr__(self) -> str:
        plain = {"dense": self.dense, "labels": self.labels, "row_ids": self.row_ids, "weights": self.weights}
        parts = [f"{name}={_shape(tensor)}" for name, tensor in plain.items() if tensor is not None]
        shown = [repr(group) for group in self.sparse[:MAX_GROUPS_SHOWN]]
        more = len(self.sparse) - len(shown)
        parts.insert(1, f"sparse=({', '.join(shown)}{f', and {more} more groups' if more else ''})")
        return f"Batch({', '.join(parts)})"

    @property
    def num_bytes(self) -> int:
        """Bytes held by all tensors of the batch."""
        plain = [self.dense, self.labels, self.row_ids] + ([] if self.weights is None else [self.weights])
        return sum(t.numel() * t.element_size() for t in plain) + sum(group.num_bytes for group in self.sparse)

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of all sparse features, group by group."""
        return tuple(key for group in self.sparse for key in group.keys)

    def expand(self) -> Batch:
        """The same batch with every group as a plain `KeyedJaggedTensor`: what a batch without deduplication is."""
        plain = (g.expand() if isinstance(g, InverseKeyedJaggedTensor) else g for g in self.sparse)
        return Batch(self.dense, tuple(plain), self.labels, self.row_ids, self.weights)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The same batch on another device; row ids stay on the host."""
        return Batch(
            dense=self.dense.to(device, non_blocking=non_blocking),
            sparse=tuple(group.to(device, non_blocking=non_blocking) for group in self.sparse),
            labels=self.labels.to(device, non_blocking=non_blocking),
            row_ids=self.row_ids,
            weights=None if self.weights is None else self.weights.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> Batch:
        """The same batch in page-locked host memory."""
        return Batch(
            dense=self.dense.pin_memory(),
            sparse=tuple(group.pin_memory() for group in self.sparse),
            labels=self.labels.pin_memory(),
            row_ids=self.row_ids,
            weights=None if self.weights is None else self.weights.pin_memory(),
        )


def _shape(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}[{', '.join(map(str, tensor.shape))}]"
