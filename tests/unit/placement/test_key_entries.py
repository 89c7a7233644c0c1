"""`KeyEntries` against a dictionary, through additions, removals and growth."""

from __future__ import annotations

import itertools

import numpy as np

from headrace.embeddings import Keys
from headrace.placement.key_entries import NEVER, KeyEntries

Pair = tuple[int, int]


def keys_of(pairs: list[Pair]) -> Keys:
    tables, ids = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return Keys(tables.astype(np.int32), ids.copy(), np.ones(len(pairs), dtype=np.int32))


def test_entries_are_those_of_a_dictionary() -> None:
    rng, entries, known = np.random.default_rng(0), KeyEntries(), dict[Pair, int]()
    for _ in range(60):
        pairs = sorted({(int(rng.integers(3)), int(rng.integers(-20_000, 20_000))) for _ in range(400)})
        found = entries.add(keys_of(pairs))
        assert (found > 0).all()
        for pair, entry in zip(pairs, found.tolist(), strict=True):
            assert known.setdefault(pair, entry) == entry
        assert len(set(known.values())) == len(known) == entries.num_entries
        gone = [pair for pair in known if rng.random() < 0.2]
        entries.column("row")[[known[pair] for pair in gone]] = 7
        entries.remove(np.array([known.pop(pair) for pair in gone], dtype=np.int32))
        assert not entries.find(keys_of(gone)).any()
        asked = [*known, (0, 10**12)]
        assert entries.find(keys_of(asked)).tolist() == [known.get(pair, 0) for pair in asked]
    assert entries._next < 2 * len(known)


def test_an_entry_that_is_given_out_again_has_no_past() -> None:
    entries = KeyEntries()
    first = entries.add(keys_of([(0, 1)]))
    entries.records[first] = (1, 5, 0, 3, 9, 9)
    entries.remove(first)
    again = entries.add(keys_of([(2, 8)]))
    assert again.tolist() == first.tolist()
    assert entries.records[again].tolist() == [(8, -1, 2, 0, int(NEVER), -1)]
    assert entries.keys_of(again).ids.tolist() == [8]
    assert entries.resident().tolist() == []


def test_memory_doubles_only_up_to_the_expected_keys() -> None:
    entries, sizes = KeyEntries(expected=20_000), []
    for start in range(0, 40_000, 500):
        entries.add(keys_of([(0, key) for key in range(start, start + 500)]))
        sizes.append(len(entries.records))
    sizes = list(dict.fromkeys(sizes))
    assert sizes[:4] == [4096, 8192, 16_384, 20_480]
    assert all(after <= 1.25 * before + 1 for before, after in itertools.pairwise(sizes[2:]))
