"""`KeyedJaggedTensor`: id lists of several features for a batch of rows, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headrace.errors import MissingExtra

__all__ = ["KeyedJaggedTensor"]

MAX_KEYS_SHOWN = 4


@dataclass(frozen=True, eq=False)
class KeyedJaggedTensor:
    """Id lists of several features (keys) for a batch of rows, stored feature by feature.

    For example, two features and three rows (features down, batch across)::

                    row 0      row 1    row 2
        clicked   [10, 11]      []       [12]
        category     [7]        [8]     [9, 9]

    are stored as::

        keys    = ("clicked", "category")
        values  = [10, 11, 12, 7, 8, 9, 9]      int64 [N]
        lengths = [ 2,  0,  1, 1, 1, 2]         int32 [F * B], feature-major
        offsets = [ 0,  2,  2, 3, 4, 5, 7]      int64 [F * B + 1]
        stride  = 3                             rows B

    Attributes:
        keys: Feature names, F of them, all different.
        values: int64 [N], the ids.
        lengths: int32 [F * B], ids per feature and row.
        offsets: int64 [F * B + 1], cumulative lengths; row b of feature f starts at `offsets[f * B + b]`.
        weights: float32 [N] or None, one weight per id.
        stride: Number of rows B in the batch.

    The constructor does not check its arguments; use `headrace.tensors.validate`. Instances are never mutated and may
    be shared between threads. Names follow `torchrec.sparse.jagged_tensor.KeyedJaggedTensor`.
    """

    keys: tuple[str, ...]
    values: Tensor
    lengths: Tensor
    offsets: Tensor
    stride: int
    weights: Tensor | None = None

    @classmethod
    def from_lengths(
        cls, keys: Sequence[str], values: Tensor, lengths: Tensor, weights: Tensor | None = None
    ) -> KeyedJaggedTensor:
        """Create from ids and lengths; the stride is `len(lengths) / len(keys)`."""
        offsets = torch.zeros(lengths.numel() + 1, dtype=torch.int64, device=lengths.device)
        torch.cumsum(lengths, 0, out=offsets[1:])
        stride = lengths.numel() // len(keys) if keys else 0
        return cls(tuple(keys), values, lengths, offsets, stride, weights)

    @classmethod
    def from_lists(cls, lists: dict[str, Sequence[Sequence[int]]]) -> KeyedJaggedTensor:
        """Create from Python lists, one list of ids per feature and row; for tests and examples."""
        lengths = [len(ids) for rows in lists.values() for ids in rows]
        values = [value for rows in lists.values() for ids in rows for value in ids]
        return cls.from_lengths(
            tuple(lists), torch.tensor(values, dtype=torch.int64), torch.tensor(lengths, dtype=torch.int32)
        )

    def __getitem__(self, key: str) -> KeyedJaggedTensor:
        """The tensor of one feature, sharing memory."""
        index = self.keys.index(key)
        start, stop = index * self.stride, (index + 1) * self.stride
        first, last = int(self.offsets[start]), int(self.offsets[stop])
        weights = None if self.weights is None else self.weights[first:last]
        return KeyedJaggedTensor(
            (key,),
            self.values[first:last],
            self.lengths[start:stop],
            self.offsets[start : stop + 1] - first,
            self.stride,
            weights,
        )

    def to_lists(self) -> dict[str, list[list[int]]]:
        """The ids as Python lists, for tests and for printing."""
        bounds, values = self.offsets.tolist(), self.values.tolist()
        return {
            key: [values[bounds[f * self.stride + b] : bounds[f * self.stride + b + 1]] for b in range(self.stride)]
            for f, key in enumerate(self.keys)
        }

    def __repr__(self) -> str:
        return f"KeyedJaggedTensor({self.stride:,} rows, {len(self.values):,} values of {keys_shown(self.keys)})"

    @property
    def num_bytes(self) -> int:
        """Bytes held by the tensors."""
        parts = [self.values, self.lengths, self.offsets] + ([] if self.weights is None else [self.weights])
        return sum([part.nbytes for part in parts])

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> KeyedJaggedTensor:
        """Copy the tensor to a device."""
        return self._map(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> KeyedJaggedTensor:
        """Copy the tensor to page-locked host memory."""
        return self._map(lambda part: part.pin_memory())

    def _map(self, change: Any) -> KeyedJaggedTensor:
        weights = None if self.weights is None else change(self.weights)
        return KeyedJaggedTensor(
            self.keys, change(self.values), change(self.lengths), change(self.offsets), self.stride, weights
        )

    def to_torchrec(self) -> Any:
        """Convert to a `torchrec.KeyedJaggedTensor`, sharing memory.

        Raises:
            MissingExtra: torchrec is not installed.
        """
        try:
            from torchrec.sparse.jagged_tensor import KeyedJaggedTensor as TorchRecTensor
        except ImportError as error:
            raise MissingExtra("torchrec", "bench") from error
        return TorchRecTensor(
            keys=list(self.keys), values=self.values, lengths=self.lengths, offsets=self.offsets, weights=self.weights
        )

    @classmethod
    def from_torchrec(cls, tensor: Any) -> KeyedJaggedTensor:
        """Convert a `torchrec.KeyedJaggedTensor`, sharing memory if dtypes are equal."""
        weights = tensor.weights_or_none()
        return cls(
            tuple(tensor.keys()),
            tensor.values().to(torch.int64),
            tensor.lengths().to(torch.int32),
            tensor.offsets().to(torch.int64),
            int(tensor.stride()),
            None if weights is None else weights.to(torch.float32),
        )


def keys_shown(keys: tuple[str, ...]) -> str:
    """The number of features and their first names, for a `repr`."""
    more = len(keys) - MAX_KEYS_SHOWN
    names = ", ".join(keys[:MAX_KEYS_SHOWN]) + (f", and {more} more" if more > 0 else "")
    return f"{len(keys)} feature{'' if len(keys) == 1 else 's'}: {names}"
