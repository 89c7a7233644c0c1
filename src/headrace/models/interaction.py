"""Dot products of all pairs of vectors, concatenated with the dense vector for the top MLP; one pass each way.

    x_BD, emb_BFD  ->  out_BK = [x | <v_i, v_j> for i > j]       v = [x, emb_0, emb_1, ...]

There is no [B, G, G] matrix, gather or concatenation: a row's vectors stay in the nearest cache while its pairs are
computed. Legend: B rows, F sparse features, D dimension, G vectors, P = G (G - 1) / 2 pairs, K = D + P (P without x).
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headrace.buffers import empty
from headrace.compiling import kernel
from headrace.models.numbers import array_of, load, num_chunks, runs_compiled, store
from headrace.models.tiles import copy_numbers, tile_add, tile_product, transpose_tile

__all__ = ["dot_interaction", "plain_dot_interaction"]

Array = npt.NDArray[Any]


@kernel(parallel=True, fastmath=True)
def _forward(x: Array, emb: Array, num_emb: int, dim: int, out: Array, num_chunks: int) -> None:
    num_rows, first = len(x), x.shape[1] // dim
    num_vectors, at_dots, width = first + num_emb, first * dim, out.shape[1]
    padded, stride = (num_vectors + 19) // 16 * 16, (dim + 15) // 16 * 16
    for chunk in numba.prange(num_chunks):
        vectors = np.zeros(padded * stride, np.float32)
        by_number = np.zeros(stride * padded, np.float32)  # component d of all vectors, contiguous
        products = np.zeros(width + 8 * padded, np.float32)
        for b in range(chunk * num_rows // num_chunks, (chunk + 1) * num_rows // num_chunks):
            for d in range(at_dots):
                vectors[d] = load(x[b, d])
            for f in range(num_emb):
                copy_numbers(emb, (b * num_emb + f) * dim, vectors, (first + f) * stride, dim)
            for i in range(0, padded, 16):
                for d in range(0, stride, 16):
                    transpose_tile(vectors, i * stride + d, stride, by_number, d * padded + i, padded)
            copy_numbers(vectors, 0, products, 0, at_dots)
            at = at_dots
            for i in range(0, num_vectors, 4):
                places = (at, at + i, at + 2 * i + 1, at + 3 * i + 3)
                for j in range((i + 2) // 16 * 16, -1, -16):
                    # Values that a row writes beyond its own pairs are overwritten by the following rows.
                    at_j = (places[0] + j, places[1] + j, places[2] + j, places[3] + j)
                    tile_product(vectors, i * stride, stride, 1, by_number, j, padded, dim, products, at_j)
                at += 4 * i + 6
            for k in range(width):
                out[b, k] = store(out, products[k])


@kernel(parallel=True, fastmath=True)
def _backward(
    x: Array, emb: Array, num_emb: int, dim: int, grad: Array, x_grad: Array, emb_grad: Array, num_chunks: int
) -> None:
    num_rows, first = len(x), x.shape[1] // dim
    num_vectors, at_dots, width = first + num_emb, first * dim, grad.shape[1]
    padded, stride = num_vectors + 3, (dim + 15) // 16 * 16
    for chunk in numba.prange(num_chunks):
        vectors = np.zeros(padded * stride, np.float32)
        grads = np.zeros(width, np.float32)
        lower = np.zeros(padded * padded, np.float32)  # gradients of pairs i > j; d v = (lower + its transpose) v
        sums = np.zeros(padded * stride, np.float32)
        for b in range(chunk * num_rows // num_chunks, (chunk + 1) * num_rows // num_chunks):
            for k in range(width):
                grads[k] = load(grad[b, k])
            for d in range(at_dots):
                vectors[d] = load(x[b, d])
            for f in range(num_emb):
                copy_numbers(emb, (b * num_emb + f) * dim, vectors, (first + f) * stride, dim)
            at = at_dots
            for i in range(1, num_vectors):
                copy_numbers(grads, at, lower, i * padded, i)
                at += i
            for i in range(0, num_vectors, 4):
                above = num_vectors - i
                for d in range(0, dim, 16):
                    at = i * stride + d
                    to = (at, at + stride, at + 2 * stride, at + 3 * stride)
                    tile_product(lower, i * padded, padded, 1, vectors, d, stride, i + 3, sums, to)
                    tile_add(lower, i * padded + i, 1, padded, vectors, at, stride, above, sums, to)
            for d in range(at_dots):
                x_grad[b, d] = store(x_grad, sums[d] + grads[d])
            for f in range(num_emb):
                copy_numbers(sums, (first + f) * stride, emb_grad, (b * num_emb + f) * dim, dim)


class _DotInteraction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, emb: Tensor, dtype: torch.dtype) -> Tensor:
        num_rows, num_emb, dim = emb.shape
        emb = emb.contiguous()
        ctx.save_for_backward(x, emb)
        num_vectors = num_emb + x.shape[1] // dim
        out = empty((num_rows, x.shape[1] + num_vectors * (num_vectors - 1) // 2), dtype)
        _forward(array_of(x), array_of(emb).reshape(-1), num_emb, dim, array_of(out), num_chunks(out.numel()))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, emb = ctx.saved_tensors
        grad = grad.contiguous()
        x_grad, emb_grad = torch.empty_like(x), empty(emb.shape)
        arrays = [array_of(tensor) for tensor in (x, emb, grad, x_grad, emb_grad)]
        x_array, emb_array, grad_array, x_grad_array, emb_grad_array = arrays
        _backward(
            x_array,
            emb_array.reshape(-1),
            emb.shape[1],
            emb.shape[2],
            grad_array,
            x_grad_array,
            emb_grad_array.reshape(-1),
            num_chunks(grad.numel()),
        )
        return x_grad, emb_grad, None


def dot_interaction(x_BD: Tensor | None, emb_BFD: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Concatenate the dense vector and the dot products of all pairs of vectors, by rows of the lower triangle.

    Args:
        x_BD: The dense vector, float32 or bfloat16, or None.
        emb_BFD: Pooled embeddings, float32.
        dtype: Dtype of the result, that of the following MLP. Dot products are computed in float32.

    Returns:
        [B, K], see the module docstring.
    """
    if not runs_compiled(emb_BFD, *(() if x_BD is None else (x_BD,))):
        return plain_dot_interaction(x_BD, emb_BFD).to(dtype)
    x_BD = emb_BFD.new_empty(len(emb_BFD), 0) if x_BD is None else x_BD.contiguous()
    return _DotInteraction.apply(x_BD, emb_BFD, dtype)  # type: ignore[no-any-return, no-untyped-call]


def plain_dot_interaction(x_BD: Tensor | None, emb_BFD: Tensor) -> Tensor:
    """`dot_interaction` in plain torch, for other devices and for tracing."""
    vectors_BGD = emb_BFD if x_BD is None else torch.cat([x_BD[:, None].to(emb_BFD.dtype), emb_BFD], dim=1)
    num_vectors = vectors_BGD.shape[1]
    i, j = torch.tril_indices(num_vectors, num_vectors, offset=-1, device=emb_BFD.device)
    dots_BGG = torch.bmm(vectors_BGD, vectors_BGD.transpose(1, 2))
    dots_BP = dots_BGG.flatten(1).index_select(1, i * num_vectors + j)
    return dots_BP if x_BD is None else torch.cat([x_BD.to(emb_BFD.dtype), dots_BP], dim=1)
