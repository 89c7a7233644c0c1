"""Operations on the rows of a lookup, with a backend per device. Placing a module on a device sets its backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from headrace.buffers import empty
from headrace.embeddings.lookup import LookupPart
from headrace.embeddings.ops.device_pooling import (
    gather_sequence_on_device,
    pool_rows_on_device,
    pool_unique_rows_on_device,
)
from headrace.embeddings.ops.pooling import gather_sequence, pool_rows, pool_unique_rows

__all__ = ["LookupBackend", "choose_backend"]


class LookupBackend(Protocol):
    """Differentiable pooling and gathering of rows."""

    def pool(self, parts: Sequence[LookupPart], shape: tuple[int, int, int], out: Tensor | None) -> Tensor:
        """Pool the bags of parts that together have every feature.

        Args:
            parts: Parts of one lookup.
            shape: Shape [B, F, D] of the result.
            out: Output tensor; None to allocate one.

        Raises:
            ValueError: `out` does not fit.
        """

    def pool_unique(self, part: LookupPart, features: Sequence[str] | None) -> tuple[Tensor, ...]:
        """Pooled bags of some features of a part, once per unique row, float32 [V, F_g, D] for each group."""

    def sequence(self, part: LookupPart, feature: int) -> tuple[Tensor, Tensor]:
        """Unpooled rows of a feature's ids, float32 [n, D], and offsets int64 [bags + 1]."""


class _HostBackend:
    """Compiled loops over arrays in host memory; their backward passes merge duplicates."""

    def pool(self, parts: Sequence[LookupPart], shape: tuple[int, int, int], out: Tensor | None) -> Tensor:
        if out is None:
            out = empty(shape)
        elif out.shape != shape or out.dtype != torch.float32 or (out.stride(2) != 1 and shape[2] > 1):
            raise ValueError(
                f"out is {out.dtype} {list(out.shape)} with strides {list(out.stride())}, "
                f"expected torch.float32 {list(shape)} with the last dimension contiguous"
            )
        return pool_rows(parts, out)

    def pool_unique(self, part: LookupPart, features: Sequence[str] | None) -> tuple[Tensor, ...]:
        return pool_unique_rows(part, features)

    def sequence(self, part: LookupPart, feature: int) -> tuple[Tensor, Tensor]:
        return gather_sequence(part, feature)


class _TorchBackend:
    """Torch operations, on any torch device."""

    def pool(self, parts: Sequence[LookupPart], shape: tuple[int, int, int], out: Tensor | None) -> Tensor:
        pooled = pool_rows_on_device(parts)
        return pooled if out is None else out.copy_(pooled)

    def pool_unique(self, part: LookupPart, features: Sequence[str] | None) -> tuple[Tensor, ...]:
        return pool_unique_rows_on_device(part, features)

    def sequence(self, part: LookupPart, feature: int) -> tuple[Tensor, Tensor]:
        return gather_sequence_on_device(part, feature)


def choose_backend(device: torch.device | None) -> LookupBackend:
    """The backend for a device; None for compiled loops on the host."""
    return _HostBackend() if device is None else _TorchBackend()
