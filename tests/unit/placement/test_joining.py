"""Keys of a step are joined as a dictionary would, and the owner of a row is the cheapest of all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.placement.joining import Prices, choose_owners, join_entries

PARTS = st.lists(st.lists(st.integers(1, 30), unique=True, max_size=12), min_size=1, max_size=4)


@settings(max_examples=60)
@given(parts=PARTS)
def test_entries_are_joined_in_the_order_of_their_first_trainer(parts: list[list[int]]) -> None:
    marks = np.zeros(31, dtype=np.int32)
    entries, places, readers = join_entries([np.array(part, dtype=np.int32) for part in parts], marks)
    assert entries.tolist() == list(dict.fromkeys(entry for part in parts for entry in part))
    assert [entries[place].tolist() for place in places] == parts
    for entry, bits in zip(entries.tolist(), readers.tolist(), strict=True):
        assert bits == sum(1 << trainer for trainer, part in enumerate(parts) if entry in part)
    assert not marks.any()


def owner_of(holder: int | None, readers: list[int], later: list[int], prices: Prices, key: int = 0) -> int:
    """The owner chosen among four trainers."""
    slot = 0 if holder is None else 4 * 7 + holder
    bits = [np.array([sum(1 << trainer for trainer in trainers)]) for trainers in (readers, later)]
    return int(choose_owners(np.array([slot]), *bits, np.array([key]), 4, prices)[0])


@pytest.mark.parametrize(
    ("holder", "readers", "later", "move_bytes", "owner"),
    [
        (1, [0, 1, 2], [], 1, 1),  # a reader that has the row keeps it
        (1, [0, 1], [0], 50, 1),  # to move costs as much as to move it, or to use it there, in the next step
        (1, [0], [], 99, 0),  # less than a value and a gradient
        (1, [0], [], 101, 1),
        (1, [0], [1], 60, 1),  # there and back
        (1, [0], [0], 199, 0),  # two uses
        (1, [0], [0], 201, 1),
        (1, [0, 2], [2], 60, 2),  # of two readers, the next one
        (1, [0], [2], 60, 0),  # 60 now and 60 later, less than 100 now and 60 later
    ],
)
def test_the_owner_is_the_cheapest(
    holder: int, readers: list[int], later: list[int], move_bytes: int, owner: int
) -> None:
    assert owner_of(holder, readers, later, Prices(move_bytes, 100)) == owner


def test_rows_of_the_shards_go_to_the_next_reader_and_otherwise_to_all_alike() -> None:
    prices = Prices(100, 100)
    assert {owner_of(None, [0, 3], [3], prices, key) for key in range(20)} == {3}
    chosen = [owner_of(None, [0, 1, 2, 3], [], prices, key) for key in range(400)]
    assert all(70 < chosen.count(trainer) < 130 for trainer in range(4))
