"""Equal values have equal hashes, whatever the layout of the Arrow array."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.logs.inspection.hashing import NULL_HASH, hash_column

SCALARS: list[tuple[pa.DataType, Any]] = [
    (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.uint8(), st.integers(0, 255)),
    (pa.bool_(), st.booleans()),
    (pa.float32(), st.floats(width=32, allow_nan=False)),
    (pa.string(), st.text(max_size=20)),
    (pa.binary(), st.binary(max_size=20)),
    (pa.timestamp("ms"), st.integers(0, 2**40)),
    (pa.date32(), st.integers(0, 2**15)),
    (pa.list_(pa.int32()), st.lists(st.integers(-5, 5), max_size=4)),
    (pa.large_list(pa.string()), st.lists(st.text(max_size=2), max_size=3)),
]


def hashes_of(array: pa.Array) -> list[int]:
    hashes = hash_column(array)
    assert hashes is not None
    assert hashes.dtype == np.uint64
    assert len(hashes) == len(array)
    return hashes.tolist()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_hashes_are_equal_exactly_where_values_are(data: st.DataObject) -> None:
    kind, values = data.draw(st.sampled_from(SCALARS))
    rows = data.draw(st.lists(st.none() | values, max_size=30))
    array = pa.array(rows, kind)
    hashes = hashes_of(array)
    plain = [str(row) for row in array.to_pylist()]
    plain = ["0.0" if row == "-0.0" else row for row in plain]
    assert len(set(hashes)) == len(set(plain))
    assert len(set(zip(hashes, plain, strict=True))) == len(set(plain))
    start = data.draw(st.integers(0, len(rows)))
    assert hashes_of(array.slice(start)) == hashes[start:]


def test_null_has_its_own_hash() -> None:
    assert hashes_of(pa.array([None, 0], pa.int64()))[0] == NULL_HASH
    assert hashes_of(pa.nulls(2)) == [NULL_HASH, NULL_HASH]
    assert hashes_of(pa.array([None, ""]))[1] != NULL_HASH


def test_zeros_and_nans_of_any_sign_are_equal() -> None:
    nans = np.array([np.nan, -np.nan])
    assert len(set(hashes_of(pa.array(nans)))) == 1
    assert len(set(hashes_of(pa.array([0.0, -0.0])))) == 1


@pytest.mark.parametrize("other", [pa.large_string(), pa.dictionary(pa.int8(), pa.string()), pa.string_view()])
def test_texts_hash_alike_in_every_layout(other: pa.DataType) -> None:
    texts = pa.array(["a", "bb", None, "a", "ccccccccc"])
    assert hashes_of(texts.cast(other)) == hashes_of(texts)
    assert hashes_of(texts.cast(other).slice(2)) == hashes_of(texts)[2:]


def test_types_without_values_to_compare_have_no_hash() -> None:
    assert hash_column(pa.array([{"a": 1}])) is None
    assert hash_column(pa.array([[{"a": 1}]])) is None


def test_short_texts_have_hashes_of_their_own() -> None:
    texts = [b"", *(bytes([one]) for one in range(256)), *(bytes([one, 0]) for one in range(256))]
    assert len(set(hashes_of(pa.array(texts, pa.binary())))) == len(texts)
