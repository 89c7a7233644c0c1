"""Matrix products in float32 or bfloat16, at the rate the processor has for them.

torch gives float32 products to MKL, which on processors of other makers than Intel does not use all lanes: 110
GFLOP/s a core where oneDNN, in the same wheel, reaches 250 (AMD EPYC of the Zen 5 generation). torch offers oneDNN for
them under a switch meant for bfloat16 inside; where the processor has no matrix tiles (AMX), oneDNN computes in full
float32 even so. That is checked with numbers that bfloat16 cannot hold before it is relied upon.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["DTYPES", "Precision", "full_rate", "has_bf16_products", "is_full_rate_exact"]

Precision = Literal["fp32", "bf16"]
"""What matrix products take: float32, or bfloat16 with sums in float32."""

_mkldnn: Any = torch.backends.mkldnn  # without types

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


def has_bf16_products() -> bool:
    """Whether the processor has instructions for bfloat16 products.

    oneDNN says yes wherever it can emulate them, which on an x86 processor with AVX512 alone is five times slower than
    float32.
    """
    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return supported


@contextmanager
def full_rate() -> Iterator[None]:
    """Let oneDNN make the float32 products of a block, if it makes them exactly.

    The switch is of the whole process. Products that other threads make meanwhile are as exact.
    """
    if not is_full_rate_exact():
        yield
        return
    before = _mkldnn.matmul.fp32_precision
    _mkldnn.matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        _mkldnn.matmul.fp32_precision = before


@functools.cache
def is_full_rate_exact() -> bool:
    """Whether this processor has wide float32 units, and oneDNN's products keep all bits of their inputs."""
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
    exact = 1 + 2.0**-12  # bfloat16 has 8 bits: it would be 1
    a, b = torch.zeros(rows, depth), torch.zeros(depth, columns)
    a[:, 3] = exact
    b[3] = 1.0
    product: Tensor = a @ b
    return bool((product == exact).all())
