"""`Residency` against a plain model: the rows of a batch are resident, and the rows that leave are used last."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from headrace.embeddings import Keys
from headrace.placement.residency import Keeps, Residency

Pair = tuple[int, int]
FAR = 10**9


def keys_of(pairs: list[Pair]) -> Keys:
    pairs = sorted(pairs)
    return Keys(
        np.array([table for table, _ in pairs], dtype=np.int32),
        np.array([key for _, key in pairs], dtype=np.int64),
        np.ones(len(pairs), dtype=np.int32),
    )


def pairs_of(keys: Keys) -> list[Pair]:
    return list(zip(keys.tables.tolist(), keys.ids.tolist(), strict=True))


def random_batches(rng: np.random.Generator, count: int, size: int) -> list[list[Pair]]:
    """Skewed keys of two tables that drift."""
    return [
        sorted({(int(rng.integers(2)), int(rng.zipf(1.3) % 50 + number // 7)) for _ in range(size)})
        for number in range(count)
    ]


@pytest.mark.parametrize("ahead", [1, 3, 12])
@pytest.mark.parametrize("capacity", [10, 25, 40, 400])
@pytest.mark.parametrize("seed", range(4))
def test_rows_leave_in_the_order_of_their_next_use(seed: int, capacity: int, ahead: int) -> None:
    batches = random_batches(np.random.default_rng(seed), 80, 14)
    residency = Residency(capacity)
    resident: dict[Pair, int] = {}  # row of each key
    last_use: dict[Pair, int] = {}
    placed = 0
    for now, batch in enumerate(batches):
        known = min(now + ahead, len(batches))
        for number in range(residency.num_announced, known):
            assert residency.announce(keys_of(batches[number])) == number
        placed = max(placed, now)
        while placed < min(known, now + 3):
            missing = [pair for pair in batches[placed] if pair not in resident]
            protected = {pair for number in range(now, placed + 1) for pair in batches[number]}
            uses = {
                pair: next((n for n in range(placed + 1, known) if pair in batches[n]), FAR)
                for pair in resident
                if pair not in protected
            }
            rank = {pair: (-use, last_use[pair] if use == FAR else 0) for pair, use in uses.items()}
            order = sorted(uses, key=rank.__getitem__)
            needed = max(0, len(resident) + len(missing) - residency.capacity)
            placing = residency.place(placed)
            if needed > len(order):
                if placed > now:
                    assert placing is None
                    break
                needed = len(order)  # the next batch has room anyway
            assert placing is not None
            assert [batches[placed][place] for place in placing.places] == missing
            left = pairs_of(placing.left)
            assert Counter(map(rank.__getitem__, left)) == Counter(map(rank.__getitem__, order[:needed]))
            assert [resident.pop(pair) for pair in left] == placing.leaving.tolist()
            assert not set(placing.rows.tolist()) & set(resident.values())
            resident |= dict(zip(missing, placing.rows.tolist(), strict=True))
            assert len(resident) == residency.num_resident <= residency.capacity
            placed += 1
        assert residency.rows_of(now).tolist() == [resident[pair] for pair in batch]
        rows, keys = residency.resident()
        assert dict(zip(pairs_of(keys), rows.tolist(), strict=True)) == resident
        assert (np.diff(keys.tables) >= 0).all()
        residency.finish()
        last_use |= dict.fromkeys(batch, now)
    assert residency.capacity == max(capacity, *map(len, batches))


@pytest.mark.parametrize("seed", range(3))
def test_keys_that_were_not_announced_get_rows_and_take_none_from_the_next_batch(seed: int) -> None:
    rng = np.random.default_rng(seed)
    batches, others = random_batches(rng, 60, 10), random_batches(rng, 60, 8)
    residency = Residency(20)
    for now, (_, other) in enumerate(zip(batches, others, strict=True)):
        for number in range(residency.num_announced, min(now + 4, len(batches))):
            residency.announce(keys_of(batches[number]))
        assert residency.place(now) is not None
        residency.adopt(keys_of(other))
        assert (residency.find(keys_of(other)) > 0).all()
        assert (residency.rows_of(now) > 0).all()
        rows, keys = residency.resident()
        assert len(set(rows.tolist())) == len(set(pairs_of(keys))) == residency.num_resident
        residency.finish()


def test_the_cost_of_keys_that_leave_and_return_is_bounded() -> None:
    """Entries of keys that are neither resident nor announced are reused, so memory does not grow with the log."""
    residency = Residency(100)
    for number in range(2_000):
        first = 50 * number
        residency.announce(keys_of([(0, key) for key in range(first, first + 50)]))
        residency.place(number)
        residency.finish()
    assert residency.num_resident == 100
    assert residency.num_bytes < 500_000
    assert residency._entries._next < 400


def hits(keeps: Keeps, batches: list[list[Pair]], capacity: int) -> list[int]:
    """Number of keys of each batch that are resident when it is announced."""
    residency, found = Residency(capacity, keeps=keeps), []
    for number, batch in enumerate(batches):
        residency.announce(keys_of(batch))
        placing = residency.place(number)
        assert placing is not None
        found.append(len(batch) - len(placing.places))
        residency.finish()
        assert residency.num_resident <= residency.capacity == capacity
        rows, keys = residency.resident()
        assert len(set(rows.tolist())) == len(set(pairs_of(keys))) == residency.num_resident
    return found


def test_rows_that_are_used_often_stay_while_others_pass_by() -> None:
    """Ten keys are used ten times, then not while twice as many keys pass by as there is room for, then again."""
    passing = [[(1, 20 * number + key) for key in range(20)] for number in range(18)]
    often = [(0, key) for key in range(10)]
    batches = [often + part for part in passing[:10]] + passing[10:16] + [often + part for part in passing[16:]]
    assert hits("frequent", batches, 55)[-2:] == [10, 10]
    assert hits("recent", batches, 55)[-2:] == [0, 10]


def test_rows_that_are_no_longer_used_leave_in_the_end() -> None:
    """Thirty keys are used forty times, then thirty others; of these, all are resident after a few batches."""
    old, new = ([(0, first + key) for key in range(30)] for first in (0, 1000))
    batches = [part + [(1, 20 * number + key) for key in range(20)] for part in (old, new) for number in range(40)]
    found = hits("frequent", batches, 60)
    assert found[39] == 30
    assert found[-1] == 30
