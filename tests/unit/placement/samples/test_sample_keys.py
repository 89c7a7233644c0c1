"""The keys of each sample are those of its ids, with their counts, also when told to another trainer."""

from __future__ import annotations

from collections import Counter

import pytest
from batches import layout, lists, random_batch

from headrace.placement.samples.packed_numbers import NumberReader
from headrace.placement.samples.sample_keys import SampleKeys

TABLE_OF = {"item": 0, "history": 0, "user": 1}


@pytest.mark.parametrize("shared", [False, True])
def test_each_sample_has_the_keys_of_its_ids_also_after_the_way(shared: bool) -> None:
    batch = random_batch(3, 20, shared=shared)
    (found,) = batch.keys_of(layout())
    mine = SampleKeys.of(found)
    data = mine.pack(2)
    reader = NumberReader(data)
    other = SampleKeys.unpack(reader, 2, 20)
    assert not reader
    for keys in (mine, other):
        rows, times = keys.rows()
        assert len(rows.starts) == 21
        for sample, ids in enumerate(lists(batch)):
            here = slice(rows.starts[sample], rows.starts[sample + 1])
            places = rows.values[here]
            pairs = zip(keys.keys.tables[places].tolist(), keys.keys.ids[places].tolist(), strict=True)
            counts = dict(zip(pairs, times[here].tolist(), strict=True))
            assert len(counts) == len(places), "each key once"
            assert counts == Counter((TABLE_OF[name], each) for name, values in ids.items() for each in values)


def test_rows_that_repeat_are_told_once() -> None:
    plain, shared = (random_batch(3, 60, shared=shared) for shared in (False, True))
    sizes = [len(SampleKeys.of(batch.keys_of(layout())[0]).pack(2)) for batch in (plain, shared)]
    assert sizes[1] < sizes[0]
