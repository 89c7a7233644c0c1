"""Chooses the precision of a model's matrix products: as requested, or by a short measurement."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from headrace.models.layers import Linear
from headrace.models.products import DTYPES, Precision, full_rate, has_bf16_products

__all__ = [
    "AskedPrecision",
    "PrecisionChoice",
    "choose_precision",
    "decide_precision",
    "layer_shapes",
    "measure_products",
]

AskedPrecision = Literal["auto", "fp32", "bf16"]

WORTHWHILE = 1.3
"""Minimum speedup of bf16 products: casts cost some of it, and precision is lost."""
SMALL_FLOP = 2e8
"""Work of a forward pass, about a millisecond, below which products do not determine the time of a step."""
ROWS, ROUNDS = 512, 4
"""Rounds of the measurement, which takes 30 ms for the default DLRM, and at most `SECONDS`."""
SECONDS = 0.15

Shape = tuple[int, int]


@dataclass(frozen=True)
class PrecisionChoice:
    """A chosen precision and the reason.

    Attributes:
        precision: Precision of the products.
        reason: The reason in one line.
        seconds: Seconds of a forward pass's products in each precision; empty if not measured.
    """

    precision: Precision
    reason: str
    seconds: Mapping[str, float] = field(default_factory=dict)


def decide_precision(seconds: Mapping[str, float], flop: float) -> PrecisionChoice:
    """Choose a precision from measurements.

    Args:
        seconds: Seconds of the same products in "fp32" and in "bf16"; empty if not measured.
        flop: Floating-point operations of the products in a forward pass of a batch.
    """
    if flop < SMALL_FLOP:
        return PrecisionChoice("fp32", f"fp32: the forward pass has only {flop / 1e6:.0f} MFLOP")
    if not seconds:
        return PrecisionChoice("fp32", "fp32: this processor has no bf16 products")
    ratio = seconds["fp32"] / seconds["bf16"]
    if ratio < WORTHWHILE:
        reason = f"fp32: bf16 products are {ratio:.1f}x as fast, expected at least {WORTHWHILE}x"
        return PrecisionChoice("fp32", reason, dict(seconds))
    return PrecisionChoice("bf16", f"bf16: products are {ratio:.1f}x as fast as in fp32", dict(seconds))


def choose_precision(model: nn.Module, num_rows: int, asked: AskedPrecision = "auto") -> PrecisionChoice:
    """Choose the precision for a model; "auto" measures with the shapes of its layers.

    Args:
        model: The model.
        num_rows: Rows per batch.
        asked: The setting of the job file.
    """
    if asked != "auto":
        return PrecisionChoice(asked, f"{asked}: set by training.precision")
    shapes = layer_shapes(model)
    flop = sum(2.0 * num_rows * num_in * num_out for num_in, num_out in shapes)
    on_cpu = all(parameter.is_cpu for parameter in model.parameters())
    has_bf16 = on_cpu and has_bf16_products()
    return decide_precision(measure_products(shapes) if has_bf16 and flop >= SMALL_FLOP else {}, flop)


def layer_shapes(model: nn.Module) -> list[Shape]:
    """Shapes (in, out) of the layers whose precision can be set."""
    stacks = [module for module in model.modules() if hasattr(module, "precision")]
    layers = [layer for stack in stacks for layer in stack.modules() if isinstance(layer, Linear)]
    return [(layer.in_features, layer.out_features) for layer in layers]


def measure_products(shapes: Sequence[Shape], num_rows: int = ROWS) -> dict[str, float]:
    """Measure the CPU seconds of the layers' products in each precision, on one thread, as the minimum of a few rounds.

    Single-threaded CPU time is least affected by other load, so equal machines choose alike.
    """
    best = {name: [float("inf")] * len(shapes) for name in DTYPES}
    threads, began = torch.get_num_threads(), time.perf_counter()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode(), full_rate():
            operands = {
                name: [(torch.ones(num_rows, i, dtype=d), torch.ones(o, i, dtype=d)) for i, o in shapes]
                for name, d in DTYPES.items()
            }
            for turn in range(1 + ROUNDS):  # the first round warms up
                for name, pairs in operands.items():
                    for at, (x, weight) in enumerate(pairs):
                        start = time.thread_time()
                        torch.mm(x, weight.t())
                        best[name][at] = min(best[name][at], time.thread_time() - start)
                if turn and time.perf_counter() - began > SECONDS:
                    break
    finally:
        torch.set_num_threads(threads)
    return {name: max(sum(values), 1e-9) for name, values in best.items()}
