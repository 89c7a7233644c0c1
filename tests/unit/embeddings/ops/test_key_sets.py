"""Finding keys of one lookup in another, against a plain dictionary."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from headrace.embeddings.keys import Keys
from headrace.embeddings.ops.key_sets import find_keys, keys_in

pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(-(2**63), 2**63 - 1) | st.integers(0, 5)), unique=True)


def keys_of(found: list[tuple[int, int]]) -> Keys:
    tables, ids = (np.array([pair[at] for pair in found], dtype=kind) for at, kind in ((0, np.int32), (1, np.int64)))
    return Keys(tables, ids, np.ones(len(found), np.int32))


@given(pairs, pairs)
def test_places_are_those_of_a_dictionary(left: list[tuple[int, int]], right: list[tuple[int, int]]) -> None:
    places = {pair: place for place, pair in enumerate(right)}
    assert find_keys(keys_of(left), keys_of(right)).tolist() == [places.get(pair, -1) for pair in left]
    assert keys_in(keys_of(left), keys_of(right)).tolist() == [pair in places for pair in left]
