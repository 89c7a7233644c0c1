"""Dense numbers for ids, against a plain dictionary."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from headrace.logs.importers.id_index import IdIndex

Ids = st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 5), max_size=60)


@given(st.lists(Ids, max_size=5))
def test_ids_are_numbered_in_the_order_in_which_they_are_first_seen(batches: list[list[int]]) -> None:
    index, expected = IdIndex(), {}
    for batch in batches:
        numbers = index.add(np.array(batch, np.int64))
        assert numbers.tolist() == [expected.setdefault(i, len(expected)) for i in batch]
    assert index.ids.tolist() == list(expected)
    assert len(index) == len(expected)


def test_numbers_survive_growth() -> None:
    index = IdIndex()
    ids = np.random.default_rng(0).permutation(100_000) * 1_000_003
    numbers = np.concatenate([index.add(part) for part in np.array_split(ids, 7)])
    assert (numbers == np.arange(100_000)).all()
    assert (index.add(ids[::-1]) == np.arange(100_000)[::-1]).all()
    assert len(index) == 100_000
