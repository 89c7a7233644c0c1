"""Memory of batches that is used again."""

import pickle

import numpy as np
import torch

from headrace.features.buffers import BufferPool

MIB = 1 << 20


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_memory_comes_back_when_the_last_view_is_gone() -> None:
    pool = BufferPool()
    array = pool.empty((MIB,), np.int64)
    array[:] = 7
    place = address(array)
    view = torch.from_numpy(array)[10:20]
    del array
    assert pool.free_bytes == 0
    assert view.tolist() == [7] * 10
    del view
    assert pool.free_bytes >= 8 * MIB
    again = pool.empty((MIB,), np.int64)
    assert address(again) == place
    assert pool.free_bytes == 0


def test_arrays_of_a_small_batch_are_used_again_too() -> None:
    pool = BufferPool()
    lengths = pool.empty(26 * 4096, np.int32)
    place = address(lengths)
    del lengths
    assert pool.free_bytes >= 26 * 4096 * 4
    assert address(pool.empty(26 * 4096, np.int32)) == place


def test_two_arrays_never_share_memory() -> None:
    pool = BufferPool()
    first, second = pool.empty(MIB, np.float32), pool.empty(MIB, np.float32)
    first[:], second[:] = 1, 2
    assert first.sum() == MIB
    assert second.sum() == 2 * MIB


def test_a_block_slightly_larger_or_smaller_fits_but_a_much_larger_one_does_not() -> None:
    pool = BufferPool()
    place = address(pool.empty(10 * MIB, np.uint8))
    assert address(pool.empty(int(10.5 * MIB), np.uint8)) == place
    assert address(pool.empty(9 * MIB, np.uint8)) == place
    small = pool.empty(2 * MIB, np.uint8)
    assert pool.free_bytes >= 10 * MIB
    assert address(small) != place


def test_no_more_is_kept_than_allowed() -> None:
    pool = BufferPool(max_free_bytes=5 * MIB)
    arrays = [pool.empty(2 * MIB, np.uint8) for _ in range(4)]
    large = pool.empty(6 * MIB, np.uint8)
    del large
    assert pool.free_bytes == 0
    arrays.clear()
    assert 0 < pool.free_bytes <= 5 * MIB


def test_small_arrays_are_left_to_the_allocator() -> None:
    pool = BufferPool()
    array = pool.empty((10, 3), np.float32)
    assert array.shape == (10, 3)
    del array
    assert pool.free_bytes == 0


def test_a_pool_is_sent_empty() -> None:
    pool = BufferPool(max_free_bytes=8 * MIB)
    pool.empty(2 * MIB, np.uint8)
    copy = pickle.loads(pickle.dumps(pool))
    assert (copy.free_bytes, copy.max_free_bytes) == (0, 8 * MIB)


def test_blocks_of_a_slab_share_no_memory_and_are_used_again() -> None:
    pool = BufferPool(slab_bytes=2 * MIB)
    arrays = [pool.empty(300_001, np.uint8) for _ in range(9)]  # of two slabs
    addresses = [array.ctypes.data for array in arrays]
    assert not any(address % 64 for address in addresses)
    for number, array in enumerate(arrays):
        array[:] = number
    assert [int(array.max()) for array in arrays] == [int(array.min()) for array in arrays] == list(range(9))
    del array, arrays
    assert pool.empty(300_001, np.uint8).ctypes.data in addresses
    large = pool.empty(2 * MIB, np.uint8)
    assert large.ctypes.data not in addresses
    assert pickle.loads(pickle.dumps(pool)).slab_bytes == 2 * MIB
