"""Memory goes from a tensor that is gone to the next one, and from no other."""

import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from headrace.buffers import MAX_IDLE_TURNS, SMALL_BYTES, BufferPool

SHAPE = (1000, 100)


def test_memory_of_a_tensor_that_is_gone_is_used_again() -> None:
    pool = BufferPool()
    first = pool.empty(SHAPE, torch.float32)
    place = first.data_ptr()
    del first
    assert pool.empty((1000, 90), torch.float32).data_ptr() == place


@pytest.mark.parametrize(
    "hold",
    [
        lambda tensor: tensor,
        lambda tensor: tensor[3:],
        lambda tensor: tensor.numpy(),
        lambda tensor: tensor.numpy()[5:7],
        lambda tensor: torch.ones(SHAPE).requires_grad_() * tensor,  # the graph keeps it for backward
    ],
    ids=["tensor", "view", "array", "part of an array", "graph"],
)
def test_memory_that_somebody_holds_is_not(hold: Callable[[Tensor], object]) -> None:
    pool = BufferPool()
    tensor = pool.empty(SHAPE, torch.float32)
    place = tensor.data_ptr()
    held = hold(tensor)
    del tensor
    assert pool.empty(SHAPE, torch.float32).data_ptr() != place
    del held
    gc.collect()
    kept = [pool.empty(SHAPE, torch.float32) for _ in range(2)]
    assert place in [tensor.data_ptr() for tensor in kept]


def test_other_shapes_and_types_share_memory_if_they_nearly_fill_it() -> None:
    pool = BufferPool()
    place = pool.empty(SHAPE, torch.float32).data_ptr()
    assert pool.empty((2000, 90), torch.bfloat16).data_ptr() == place
    assert pool.empty((100, 100), torch.bfloat16).data_ptr() != place  # far too large for it


def test_steps_of_one_shape_need_no_new_memory() -> None:
    pool = BufferPool()
    for _ in range(5):
        held = [pool.empty(SHAPE, torch.float32) for _ in range(4)]
    assert len(held) == 4
    assert pool.num_bytes <= 8 * 9 * SHAPE[0] * SHAPE[1] * 4 // 8  # this step's and the last one's


def test_buffers_that_nobody_asks_for_are_let_go() -> None:
    pool = BufferPool()
    pool.empty((1000, 1000), torch.float32)
    for _ in range(MAX_IDLE_TURNS + 1):
        pool.empty(SHAPE, torch.float32)
    assert pool.num_bytes > 4_000_000
    pool.empty((300, 1000), torch.float32)  # a size it does not have: time to look what is idle
    assert pool.num_bytes < 4_000_000


def test_small_tensors_are_left_to_the_allocator() -> None:
    pool = BufferPool()
    assert pool.empty((SMALL_BYTES // 4 - 1,), torch.float32).shape == (SMALL_BYTES // 4 - 1,)
    assert pool.num_bytes == 0
