"""Where columns change from row to row, for every kind of column."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.logs.nested.changes import can_compare, changed

KINDS = {
    "int": (pa.int32(), st.integers(0, 2)),
    "float": (pa.float32(), st.sampled_from([0.5, 1.5])),
    "half": (pa.float16(), st.sampled_from([0.5, 1.5])),
    "bool": (pa.bool_(), st.booleans()),
    "text": (pa.string(), st.sampled_from(["", "a"])),
    "list": (pa.list_(pa.int64()), st.lists(st.integers(0, 1) | st.none(), max_size=2)),
    "texts": (pa.list_(pa.string()), st.lists(st.sampled_from(["", "a"]), max_size=2)),
    "large": (pa.large_list(pa.float32()), st.lists(st.sampled_from([0.5, 1.5]), max_size=2)),
}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_row_changes_where_its_value_is_not_that_of_the_row_before(kind: str, data: st.DataObject) -> None:
    arrow_type, values = KINDS[kind]
    rows = data.draw(st.lists(values | st.none(), max_size=12))
    start = data.draw(st.integers(0, len(rows)))
    if kind == "half":
        rows = [None if value is None else np.float16(value) for value in rows]
    array = pa.array(rows, arrow_type).slice(start)
    expected = [now != before for before, now in zip(rows[start:], rows[start + 1 :], strict=False)]
    assert changed(array).tolist() == expected


def test_nan_repeats_nan_and_zero_has_a_sign() -> None:
    assert changed(pa.array([np.nan, np.nan, 0.0, -0.0])).tolist() == [False, True, True]
    assert changed(pa.array([np.nan, np.nan, None, 0.0, -0.0])).tolist() == [False, True, True, True]


def test_dictionaries_are_compared_by_value() -> None:
    assert changed(pa.array(["a", "a", "b", None]).dictionary_encode()).tolist() == [False, True, True]


def test_nested_values_cannot_be_compared() -> None:
    assert not can_compare(pa.struct([("x", pa.int64())]))
    assert not can_compare(pa.list_(pa.list_(pa.int64())))
    assert can_compare(pa.list_(pa.int64()))
