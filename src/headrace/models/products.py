"""Matrix products in float32 or bfloat16, at the processor's full rate.

torch uses MKL for float32 products, which does not use the full vector width on non-Intel processors: 110 GFLOP/s per
core, where oneDNN in the same wheel reaches 250 (AMD EPYC, Zen 5). torch offers oneDNN for them with a switch meant to
allow bfloat16 internally; on processors without matrix tiles (AMX), oneDNN still computes in full float32. This is
verified with numbers that bfloat16 cannot represent.
"""

from __future__ import annotations

import functools
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["DTYPES", "Precision", "full_rate", "has_bf16_products", "is_full_rate_exact"]

Precision = Literal["fp32", "bf16"]
"""Precision of matrix products: float32, or bfloat16 with float32 sums."""

_mkldnn: Any = torch.backends.mkldnn  # untyped

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


def has_bf16_products() -> bool:
    """Whether the processor has bfloat16 product instructions.

    oneDNN reports support even if it only emulates them, which on an x86 processor with only AVX512 is five times
    slower than float32.
    """
    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return supported


class _Switch:
    """torch's process-wide switch. It is on as long as any thread needs it: each restoring what it found would leave
    it on forever if two overlap."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_users = 0
        self._before = "none"

    def __enter__(self) -> None:
        with self._lock:
            if self._num_users == 0:
                self._before = _mkldnn.matmul.fp32_precision
                _mkldnn.matmul.fp32_precision = "bf16"
            self._num_users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._num_users -= 1
            if self._num_users == 0:
                _mkldnn.matmul.fp32_precision = self._before


_switch = _Switch()


@contextmanager
def full_rate() -> Iterator[None]:
    """Use oneDNN for float32 products within this context, if it computes them exactly.

    The switch affects the whole process; products of other threads are equally exact.
    """
    if not is_full_rate_exact():
        yield
        return
    with _switch:
        yield


@functools.cache
def is_full_rate_exact() -> bool:
    """Whether this processor has wide float32 units and oneDNN's products keep full input precision."""
    if not _mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    if torch.cpu._is_amx_tile_supported():
        return False
    settings = _mkldnn.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        return all(_keeps_bits(*shape) for shape in ((64, 64, 64), (512, 367, 512), (16, 1024, 256)))
    finally:
        settings.fp32_precision = before


def _keeps_bits(rows: int, depth: int, columns: int) -> bool:
    exact = 1 + 2.0**-12  # with bfloat16's 8 bits it would be 1
    a, b = torch.zeros(rows, depth), torch.zeros(depth, columns)
    a[:, 3] = exact
    b[3] = 1.0
    product: Tensor = a @ b
    return bool((product == exact).all())
