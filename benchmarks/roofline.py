"""A lower bound on the time of a training step on this machine: the work of the step over measured rates.

    matrix products   per layer: forward pass, gradient of the input, gradient of the weights (best of several runs)
    rows              one random read per id (lookup), and one read and one write per unique id (update)
    copies            pooled embeddings, written and read in the forward and in the backward pass

These parts are assumed not to overlap. Other work (activations, interaction, loss, dense optimizer) counts as free, so
the result is a bound, not an estimate.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from peers.step_work import Shape

__all__ = ["Bound", "bound_of"]


@dataclass(frozen=True)
class Bound:
    """A lower bound on the time of a step, and the rates it is computed from.

    Attributes:
        seconds: Lower bound of the seconds per step.
        dtype: The dtype in which matrix products are faster, which the bound uses.
        gflops: GFLOP of the matrix products of one step.
        gemm_gflop_per_s: Rate of the matrix products, over all layers.
        row_ns: Nanoseconds to read a random row.
        copy_gib_per_s: Copy rate, counting each copied byte once.
    """

    seconds: float
    dtype: str
    gflops: float
    gemm_gflop_per_s: float
    row_ns: float
    copy_gib_per_s: float


def layers(shape: Shape) -> Iterator[tuple[int, int]]:
    """Yield (inputs, outputs) of every linear layer of the model."""
    flat = shape.num_dense + shape.num_tables * shape.embedding_dim
    widths = [flat, *shape.top, 1]
    if shape.model == "dlrm":
        yield from pairwise([shape.num_dense, *shape.bottom, shape.embedding_dim])
        vectors = shape.num_tables + 1
        widths[0] = shape.embedding_dim + vectors * (vectors - 1) // 2
    if shape.model == "dcnv2":
        yield from [(flat, flat)] * 3
    yield from pairwise(widths)


def bound_of(shape: Shape) -> Bound:
    """Measure the machine, with as many threads as the shape has, and return the bound; takes some seconds."""
    torch.set_num_threads(shape.threads)
    size = shape.batch_size
    gflops = sum(6e-9 * size * num_in * num_out for num_in, num_out in layers(shape))
    times = {dtype: sum(_layer_seconds(size, *layer, dtype) for layer in layers(shape)) for dtype in _DTYPES}
    dtype = min(times, key=lambda each: times[each])
    ids = next(shape.batches()).ids
    row_s = _row_seconds(shape)
    unique = sum(len(np.unique(part)) for part in np.array_split(ids, shape.num_tables))
    pooled = size * shape.num_tables * shape.embedding_dim * 4
    copy = _copy_bytes_per_s(pooled)
    seconds = times[dtype] + row_s * (len(ids) + 2 * unique) + 2 * pooled / copy
    return Bound(seconds, str(dtype).removeprefix("torch."), gflops, gflops / times[dtype], row_s * 1e9, copy / 2**30)


_DTYPES = (torch.float32, torch.bfloat16)


def _layer_seconds(size: int, num_in: int, num_out: int, dtype: torch.dtype) -> float:
    x, w = torch.randn(size, num_in).to(dtype), torch.randn(num_out, num_in).to(dtype)
    y = torch.randn(size, num_out).to(dtype)
    products: list[Callable[[], object]] = [lambda: x @ w.T, lambda: y @ w, lambda: y.T @ x]
    return sum(map(_best, products))


def _row_seconds(shape: Shape) -> float:
    """Measure seconds per random row, read in parallel from a table as large as all tables together (at most 2 GiB)."""
    num_rows = min(shape.num_tables * shape.num_embeddings, (2 << 30) // (4 * shape.embedding_dim))
    table = torch.ones(num_rows, shape.embedding_dim)
    ids = torch.randint(0, num_rows, (shape.batch_size * shape.num_tables,))
    out = torch.empty(len(ids), shape.embedding_dim)
    return _best(lambda: torch.index_select(table, 0, ids, out=out)) / len(ids)


def _copy_bytes_per_s(num_bytes: int) -> float:
    source, target = torch.ones(num_bytes // 4), torch.empty(num_bytes // 4)
    return num_bytes / _best(lambda: target.copy_(source))


def _best(run: Callable[[], object], rounds: int = 15) -> float:
    """Return the seconds of the fastest of several runs."""
    samples = []
    for _ in range(rounds):
        begin = time.perf_counter()
        run()
        samples.append(time.perf_counter() - begin)
    return min(samples)
