"""Concatenation of dense features and embeddings as network input, and the factorisation machine on them.

    x_BX = [dense_BN | emb_BFD flattened]
    fm_B = sum over pairs i < j of <v_i, v_j> = 1/2 (|sum v|^2 - sum |v|^2)      v = dense_n vectors_n, emb_f

The embeddings' gradient through both is computed in one pass. Rendle, "Factorization Machines", 2010, lemma 3.1.
Legend: B rows, N dense features, F sparse features, D dimension, X = N + F D.
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

__all__ = ["join_fields", "join_fields_with_fm"]

Array = npt.NDArray[Any]


@kernel(parallel=True, fastmath=True)
def _join(dense: Array, emb: Array, out: Array, chunks: int) -> None:
    num_rows, num_dense = dense.shape
    for chunk in numba.prange(chunks):
        for b in range(chunk * num_rows // chunks, (chunk + 1) * num_rows // chunks):
            row, numbers = out[b, num_dense:], emb[b]
            for n in range(num_dense):
                out[b, n] = store(out, dense[b, n])
            for k in range(len(numbers)):
                row[k] = store(row, numbers[k])


@kernel(parallel=True, fastmath=True)
def _machine(dense: Array, vectors: Array, emb: Array, sums: Array, out: Array, chunks: int) -> None:
    num_rows, dim = sums.shape
    for chunk in numba.prange(chunks):
        squares = np.zeros(dim, np.float32)
        for b in range(chunk * num_rows // chunks, (chunk + 1) * num_rows // chunks):
            total, numbers = sums[b], emb[b]
            for d in range(dim):
                total[d] = squares[d] = 0.0
            for n in range(len(vectors)):
                value, vector = dense[b, n], vectors[n]
                for d in range(dim):
                    total[d] += value * vector[d]
                    squares[d] += value * vector[d] * value * vector[d]
            for f in range(len(numbers) // dim):
                vector = numbers[f * dim : (f + 1) * dim]
                for d in range(dim):
                    total[d] += vector[d]
                    squares[d] += vector[d] * vector[d]
            pairs = np.float32(0.0)
            for d in range(dim):
                pairs += total[d] * total[d] - squares[d]
            out[b] = np.float32(0.5) * pairs


@kernel(parallel=True, fastmath=True)
def _embedding_gradient(
    emb: Array, sums: Array, grad: Array, num_dense: int, machine_grad: Array, emb_grad: Array, chunks: int
) -> None:
    num_rows, dim = sums.shape
    for chunk in numba.prange(chunks):
        for b in range(chunk * num_rows // chunks, (chunk + 1) * num_rows // chunks):
            row, numbers, result = grad[b, num_dense:], emb[b], emb_grad[b]
            for k in range(len(row)):
                result[k] = load(row[k])
            if len(machine_grad):
                g, total = machine_grad[b], sums[b]
                for f in range(len(numbers) // dim):
                    vector, target = numbers[f * dim : (f + 1) * dim], result[f * dim : (f + 1) * dim]
                    for d in range(dim):
                        target[d] += g * (total[d] - vector[d])


class _JoinFields(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dense: Tensor, emb: Tensor, vectors: Tensor | None, dtype: torch.dtype) -> Any:
        dense, emb = dense.contiguous(), emb.contiguous()
        flat = array_of(emb).reshape(len(emb), -1)
        out = empty((len(emb), dense.shape[1] + flat.shape[1]), dtype)
        chunks = num_chunks(out.numel())
        _join(array_of(dense), flat, array_of(out), chunks)
        ctx.save_for_backward(dense, emb, vectors)
        if vectors is None:
            return out
        sums, machine = torch.empty(len(emb), emb.shape[2]), torch.empty(len(emb))
        ctx.sums = sums.numpy()
        _machine(array_of(dense), array_of(vectors.contiguous()), flat, ctx.sums, machine.numpy(), chunks)
        return out, machine

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dense, emb, vectors = ctx.saved_tensors
        grad = grads[0].contiguous()
        emb_grad = empty(emb.shape)
        flat, flat_grad = array_of(emb).reshape(len(emb), -1), emb_grad.numpy().reshape(len(emb), -1)
        sums, machine_grad = np.empty((len(emb), emb.shape[2]), np.float32), np.empty(0, np.float32)
        vectors_grad = None
        if vectors is not None:
            machine = grads[1].contiguous()
            sums, machine_grad = ctx.sums, machine.numpy()
            weighted = machine[:, None] * dense
            squares = (weighted * dense).sum(0)
            vectors_grad = weighted.t() @ torch.from_numpy(sums) - squares[:, None] * vectors
        chunks = num_chunks(grad.numel())
        _embedding_gradient(flat, sums, array_of(grad), dense.shape[1], machine_grad, flat_grad, chunks)
        return None, emb_grad, vectors_grad, None


def join_fields(dense_BN: Tensor, emb_BFD: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Concatenate dense features and embeddings.

    Args:
        dense_BN: float32.
        emb_BFD: float32.
        dtype: Dtype of the result, that of the following network.

    Returns:
        [B, N + F D].
    """
    if dense_BN.requires_grad or not runs_compiled(emb_BFD):
        return torch.cat([dense_BN, emb_BFD.flatten(1)], dim=1).to(dtype)
    return _JoinFields.apply(dense_BN, emb_BFD, None, dtype)  # type: ignore[no-any-return, no-untyped-call]


def join_fields_with_fm(
    dense_BN: Tensor, emb_BFD: Tensor, vectors_ND: Tensor, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """`join_fields`, plus the factorisation machine's sum over pairs.

    Args:
        dense_BN: float32.
        emb_BFD: float32.
        vectors_ND: float32, the vector of each dense feature.
        dtype: Dtype of the first result.

    Returns:
        [B, N + F D], and float32 [B].
    """
    if dense_BN.requires_grad or not runs_compiled(emb_BFD):
        fields_BGD = torch.cat([dense_BN[:, :, None] * vectors_ND, emb_BFD], dim=1)
        machine_B = 0.5 * (fields_BGD.sum(1).square() - fields_BGD.square().sum(1)).sum(1)
        return join_fields(dense_BN, emb_BFD, dtype), machine_B
    return _JoinFields.apply(dense_BN, emb_BFD, vectors_ND, dtype)  # type: ignore[no-any-return, no-untyped-call]
