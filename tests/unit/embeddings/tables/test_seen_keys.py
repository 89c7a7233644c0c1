"""`SeenKeys` has no false negatives, and few false positives."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.embeddings import Keys
from headrace.embeddings.tables.seen_keys import SeenKeys


def keys(first: int, count: int, table: int = 0) -> Keys:
    return Keys(np.full(count, table, np.int32), np.arange(first, first + count), np.ones(count, np.int32))


def test_added_keys_are_always_found_and_others_rarely() -> None:
    seen = SeenKeys(15_000)
    assert not seen.contains(keys(0, 1000)).any()
    seen.add(keys(0, 10_000))
    assert seen.contains(keys(0, 10_000)).all()
    assert seen.contains(keys(10_000, 100_000)).mean() < 0.02
    assert seen.contains(keys(0, 10_000, table=1)).mean() < 0.02


def test_a_full_set_finds_all_and_a_merged_one_those_of_both() -> None:
    small = SeenKeys(64)
    small.add(keys(0, 1000))
    assert small.contains(keys(0, 5000)).all()
    one, other = SeenKeys(1000), SeenKeys(1000)
    one.add(keys(0, 50))
    other.add(keys(50, 50))
    one.merge(other.blocks)
    assert one.contains(keys(0, 100)).all()
    with pytest.raises(ValueError, match="blocks: given"):
        one.merge(small.blocks)
