"""Numbers come out as they went in, in as few bits as they need."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.placement.samples.packed_numbers import (
    NumberReader,
    pack_floats,
    pack_ids,
    pack_numbers,
    packed_bytes,
)


@given(st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=9), min_size=1, max_size=5))
def test_segments_of_any_integers_are_packed_and_read(segments: list[list[int]]) -> None:
    numbers = np.array([number for segment in segments for number in segment], dtype=np.int64)
    sizes = np.array([len(segment) for segment in segments])
    data = pack_numbers(numbers, sizes)
    assert len(data) == packed_bytes(numbers, sizes)
    reader = NumberReader(np.concatenate([data, data]))
    for _ in range(2):
        assert reader.take_numbers(sizes).tolist() == numbers.tolist()
    assert not reader


@pytest.mark.parametrize(
    ("numbers", "num_bytes"), [([], 2), ([5] * 1000, 3), ([700, 701, 703], 5), ([-1, 0] * 8, 5), ([0, 2**40], 13)]
)
def test_a_segment_takes_the_bits_of_its_range(numbers: list[int], num_bytes: int) -> None:
    assert len(pack_numbers(np.array(numbers, dtype=np.int64))) == num_bytes


@pytest.mark.parametrize(
    ("numbers", "num_bytes"), [([0, 1] * 8, 3), ([0.5, 1.0], 9), ([-0.0, float("inf")], 9), ([], 1)]
)
def test_floats_keep_their_bits_and_labels_take_one(numbers: list[float], num_bytes: int) -> None:
    given_numbers = np.array(numbers, dtype=np.float32)
    data = pack_floats(given_numbers)
    assert len(data) == num_bytes
    assert NumberReader(data).take_floats(len(numbers)).tobytes() == given_numbers.tobytes()


@given(st.lists(st.lists(st.sampled_from([0, 5, -(2**63), 2**40, 2**63 - 1]), max_size=12), min_size=1, max_size=5))
def test_ids_of_which_many_are_equal_are_packed_and_read(segments: list[list[int]]) -> None:
    ids = np.array([each for segment in segments for each in segment], dtype=np.int64)
    sizes = np.array([len(segment) for segment in segments])
    reader = NumberReader(pack_ids(ids, sizes))
    assert reader.take_ids(sizes).tolist() == ids.tolist()
    assert not reader


def test_an_id_that_occurs_often_is_sent_once() -> None:
    often, once = np.tile([2**40, 0, 1, 2], 64), np.arange(256) * 2**32
    assert len(pack_ids(often, np.array([256]))) < 256 // 4 + 4 * 6 + 10
    assert len(pack_ids(once, np.array([256]))) <= len(pack_numbers(once)) + 6
