"""Stochastic rounding in torch, bit-identical to `row_formats` on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from headrace.embeddings.storage.row_formats import GREATEST_EXPONENT, LEAST_EXPONENT, NAN_EXPONENT

__all__ = ["mix64", "rounded"]

GOLDEN = 0x9E3779B97F4A7C15
NARROW = 2.0**-112


def _signed(value: int) -> int:
    """Reinterpret a uint64 as int64, because torch multiplies and adds int64 modulo 2^64."""
    return value - 2**64 if value >= 2**63 else value


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix64(x: Tensor) -> Tensor:
    """`hashing.mix64` of an int64 tensor."""
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _chances(counters_U: Tensor, dim: int, seed: int) -> Tensor:
    """16 random bits per number, int32 [U, dim]; a 64-bit state is used for four numbers."""
    state_U = mix64(counters_U * _signed(GOLDEN) + _signed(seed))
    firsts = torch.arange(0, dim, 4, device=counters_U.device)
    bits = mix64(state_U[:, None] + (firsts + 1) * _signed(GOLDEN))
    shifts = torch.arange(4, device=counters_U.device) * 16
    chances = (bits[:, :, None] >> shifts) & 0xFFFF
    return chances.flatten(1)[:, :dim].to(torch.int32)


def rounded(values_UD: Tensor, counters_U: Tensor, row_format: str, seed: int) -> Tensor:
    """Round float32 [U, dim] to a row format.

    Args:
        values_UD: Values to round.
        counters_U: int64 [U], random stream of each row; see `row_formats.round_row`.
        row_format: fp32, bf16, fp16 or int8.
        seed: Seed of the step, a uint64.
    """
    if row_format == "fp32":
        return values_UD
    chance = _chances(counters_U, values_UD.shape[1], seed)
    if row_format == "bf16":
        bits = values_UD.contiguous().view(torch.int32)
        exponent = 0x7F800000
        up = bits + chance
        kept = torch.where((up & exponent) == exponent, bits, up)  # finite values stay finite, infinite ones infinite
        return (kept & -65536).view(torch.float32).to(torch.bfloat16)
    if row_format == "int8":
        return _int8_rows(values_UD, chance)
    narrowed = (values_UD.abs() * NARROW).view(torch.int32)
    half = ((narrowed + (chance & 0x1FFF)) >> 13).clamp(max=0x7BFF)
    half = half | ((values_UD.contiguous().view(torch.int32) >> 16) & 0x8000)
    half = torch.where(half >= 0x8000, half - 0x10000, half).to(torch.int16).view(torch.float16)
    return torch.where(values_UD.isnan(), torch.full_like(half, torch.nan), half)


def _int8_rows(values_UD: Tensor, chance_UD: Tensor) -> Tensor:
    """int8 [U, dim + 1]: numbers, and the exponent of their scale."""
    bits_U1 = (values_UD.contiguous().view(torch.int32) & 0x7FFFFFFF).amax(dim=1, keepdim=True)
    exponents_U1 = (bits_U1 >> 23) - 133 + ((bits_U1 & 0x7FFFFF) > 0x7E0000).int()
    exponents_U1 = exponents_U1.clamp(LEAST_EXPONENT, GREATEST_EXPONENT)
    inverses_U1 = ((127 - exponents_U1) << 23).view(torch.float32)
    numbers_UD = (values_UD * inverses_U1 + chance_UD * 2.0**-16).floor().clamp(-127, 127)
    is_finite_U1 = bits_U1 < 0x7F800000
    numbers_UD = torch.where(is_finite_U1, numbers_UD, torch.zeros_like(numbers_UD))
    exponents_U1 = torch.where(is_finite_U1, exponents_U1, torch.full_like(exponents_U1, NAN_EXPONENT))
    return torch.cat([numbers_UD.to(torch.int8), exponents_U1.to(torch.int8)], dim=1)
