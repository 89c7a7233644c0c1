"""All trainers learn the same keys in the same round, whenever each of them tells its own."""

from __future__ import annotations

from collections import defaultdict, deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.embeddings import Keys
from headrace.placement.key_rounds import KeyRounds, pack_keys, unpack_keys
from headrace.placement.peers import Bytes

NUM_TABLES = 3


class Post:
    """`Peers` of a trainer, over lists; nothing is waited for, so all must have sent."""

    def __init__(self, rank: int, size: int, boxes: defaultdict[tuple[int, int, int], deque[Bytes]]) -> None:
        self.rank, self.size, self.boxes = rank, size, boxes

    def send(self, target: int, data: Bytes, *, tag: int) -> None:
        self.boxes[self.rank, target, tag].append(data)

    def receive(self, source: int, num_bytes: int, *, tag: int) -> Receipt:
        return Receipt(self.boxes[source, self.rank, tag], num_bytes)


class Receipt:
    def __init__(self, box: deque[Bytes], num_bytes: int) -> None:
        self.box, self.num_bytes = box, num_bytes

    def result(self) -> Bytes:
        data = self.box.popleft()
        assert len(data) == self.num_bytes, "both sides know the length"
        return data


def random_keys(rng: np.random.Generator, num_keys: int, largest: int = 100, most: int = 5) -> Keys:
    tables = np.sort(rng.integers(0, NUM_TABLES, num_keys)).astype(np.int32)
    ids = rng.permutation(largest)[:num_keys].astype(np.int64)
    return Keys(tables, ids, rng.integers(0, most, num_keys).astype(np.int32))


def assert_equal(keys: Keys, others: Keys) -> None:
    for name in ("tables", "ids", "counts"):
        mine, theirs = getattr(keys, name), getattr(others, name)
        assert mine.dtype == theirs.dtype
        assert mine.tolist() == theirs.tolist()


@pytest.mark.parametrize("shift", [0, 1 << 20, 1 << 31, -(1 << 40), 1 << 62])
@pytest.mark.parametrize("most", [2, 1 << 20])
@pytest.mark.parametrize("num_keys", [0, 1, 40])
def test_keys_are_packed_and_unpacked(num_keys: int, most: int, shift: int) -> None:
    keys = random_keys(np.random.default_rng(num_keys), num_keys, most=most)
    keys = Keys(keys.tables, keys.ids + shift, keys.counts)
    both = np.concatenate([pack_keys(keys, 7, NUM_TABLES), pack_keys(keys, 8, NUM_TABLES)])
    found = unpack_keys(both, NUM_TABLES)
    assert [num_rows for _, num_rows in found] == [7, 8]
    for unpacked, _ in found:
        assert_equal(unpacked, keys)


def test_ids_take_the_bytes_of_the_largest_and_ones_a_bit() -> None:
    keys = random_keys(np.random.default_rng(0), 40)
    keys = Keys(keys.tables, keys.ids + (1 << 16), np.ones(40, dtype=np.int32))
    keys.counts[7] = 300
    assert len(pack_keys(keys, 7, NUM_TABLES)) == 16 + 4 * NUM_TABLES + 3 * 40 + 40 // 8 + 2


@settings(max_examples=50)
@given(data=st.data(), size=st.integers(2, 4))
def test_a_batch_is_known_to_all_in_the_round_in_which_the_last_one_told_it(data: st.DataObject, size: int) -> None:
    rng, boxes = np.random.default_rng(0), defaultdict[tuple[int, int, int], deque[Bytes]](deque)
    trainers = [KeyRounds(Post(rank, size, boxes), NUM_TABLES) for rank in range(size)]
    told: list[list[tuple[Keys, int]]] = [[] for _ in range(size)]
    num_known = 0
    for _ in range(8):
        for rank, trainer in enumerate(trainers):
            for _ in range(data.draw(st.integers(0, 3))):
                keys = random_keys(rng, int(rng.integers(0, 9)))
                told[rank].append((keys, int(rng.integers(100))))
                trainer.add(*told[rank][-1])
        for trainer in trainers:
            trainer.start()
        known = [trainer.finish() for trainer in trainers]
        assert len({len(batches) for batches in known}) == 1
        for batches in zip(*known, strict=True):
            for batch in batches:
                for rank in range(size):
                    keys, num_rows = told[rank][num_known]
                    assert_equal(batch.parts[rank], keys)
                    assert batch.num_rows[rank] == num_rows
            num_known += 1
    for _ in range(2):  # what is told now is in the next message
        for trainer in trainers:
            trainer.start()
        found = [len(trainer.finish()) for trainer in trainers]
        num_known += found[0]
    assert num_known == min(map(len, told))
