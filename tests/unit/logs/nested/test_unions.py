"""Lists that shift: slices of a union give back every list, and a shift costs what is new."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.logs.nested.unions import Unions, make_unions


def lists_of(unions: Unions, offsets: np.ndarray) -> list[list[object]]:
    found = []
    for session in range(len(offsets) - 1):
        union = unions.values[session].as_py()
        slices = range(offsets[session], offsets[session + 1])
        found += [union[unions.starts[i] : unions.starts[i] + unions.lengths[i]] for i in slices]
    return found


SESSIONS = st.lists(st.lists(st.lists(st.integers(0, 3) | st.none(), max_size=6), max_size=6), max_size=4)


@settings(max_examples=150, deadline=None)
@given(SESSIONS, st.booleans())
def test_slices_of_the_union_are_the_lists(sessions: list[list[list[int | None]]], newest_first: bool) -> None:
    flat = [values for session in sessions for values in session]
    offsets = np.concatenate([[0], np.cumsum([len(session) for session in sessions])]).astype(np.int64)
    unions = make_unions(pa.array(flat, pa.list_(pa.int64())), offsets, newest_first=newest_first)
    assert lists_of(unions, offsets) == flat
    assert len(unions.values.values) <= sum(map(len, flat))


@pytest.mark.parametrize("newest_first", [False, True])
def test_a_history_that_shifts_is_stored_once(newest_first: bool) -> None:
    lists = [[5, 6, 7], [6, 7, 8], [6, 7, 8], [8, 9], [9, 1, 2]]
    if newest_first:
        lists = [values[::-1] for values in lists]
    unions = make_unions(pa.array(lists), np.array([0, 5]), newest_first=newest_first)
    assert sorted(unions.values[0].as_py()) == [1, 2, 5, 6, 7, 8, 9]


def test_texts_shift_too_and_null_lists_are_kept_apart_from_empty_ones() -> None:
    lists = pa.array([["a", "b"], None, ["b", None], [], ["b", None, "c"]])
    unions = make_unions(lists, np.array([0, 5]), newest_first=False)
    assert unions.values[0].as_py() == ["a", "b", None, "c"]
    assert unions.valid is not None
    assert unions.valid.tolist() == [True, False, True, True, True]


def test_sessions_share_nothing() -> None:
    unions = make_unions(pa.array([[1, 2], [2, 3], [2, 3]]), np.array([0, 1, 2, 2, 3]), newest_first=False)
    assert unions.values.to_pylist() == [[1, 2], [2, 3], [], [2, 3]]
