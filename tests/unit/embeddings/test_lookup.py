"""Pooling into a buffer of the caller's, and gradients that lie anywhere."""

from typing import Any

import pytest
import torch

from headrace.embeddings import EmbeddingBags, EmbeddingsConfig
from headrace.tensors import KeyedJaggedTensor

NAMES = ("a", "b", "c")
LISTS = {"a": [[0, 1, 1], [2]], "b": [[3], [3, 0]], "c": [[2, 1], []]}


def bags_of(**tables: Any) -> EmbeddingBags:
    config = {"default": {"num_embeddings": 50, "optimizer": {"kind": "adagrad", "lr": 0.3}}, "tables": tables}
    return EmbeddingBags(EmbeddingsConfig.from_dict(config, where="test"), NAMES, 8, seed=1)


def columns(bags: EmbeddingBags) -> dict[str, Any]:
    assert bags.table_group is not None
    return bags.table_group.state_dict()


def test_pooling_writes_into_part_of_a_buffer_and_reads_its_gradient_there() -> None:
    kjt = KeyedJaggedTensor.from_lists(LISTS)
    plain, into = bags_of(), bags_of()
    buffer = torch.full((2, 5, 8), 7.0)
    out = into.pool(into.lookup((kjt,)), out=buffer[:, 1:4])
    assert out.data_ptr() == buffer[:, 1:4].data_ptr()
    assert torch.equal(buffer[:, 0], torch.full((2, 8), 7.0))
    assert torch.equal(buffer[:, 4], torch.full((2, 8), 7.0))
    plain_out = plain((kjt,))
    assert torch.equal(out, plain_out)
    grads = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    out.backward(grads[:, 2:5])
    plain_out.backward(grads[:, 2:5].clone())
    for bags in (plain, into):
        bags.apply_gradients()
    for name, column in columns(plain).items():
        assert (column == columns(into)[name]).all(), name


def test_a_gradient_with_any_strides_is_read_right() -> None:
    kjt = KeyedJaggedTensor.from_lists(LISTS)
    grads = torch.randn(8, 3, 2, generator=torch.Generator().manual_seed(0))
    results = []
    for grad in (grads.permute(2, 1, 0), grads.permute(2, 1, 0).contiguous()):
        bags = bags_of()
        bags((kjt,)).backward(grad)
        bags.apply_gradients()
        assert bags.table_group is not None
        results.append(bags.table_group.weights.clone())
    assert torch.equal(*results)


def test_a_buffer_that_does_not_fit_is_refused_with_both_sides() -> None:
    bags, kjt = bags_of(), KeyedJaggedTensor.from_lists(LISTS)
    for buffer in (torch.empty(2, 4, 8), torch.empty(2, 3, 8, dtype=torch.float64), torch.empty(2, 8, 3).mT):
        with pytest.raises(ValueError, match=r"expected torch\.float32 \[2, 3, 8\] with the last dimension contiguous"):
            bags.pool(bags.lookup((kjt,)), out=buffer)
