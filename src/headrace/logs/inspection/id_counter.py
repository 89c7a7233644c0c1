"""`IdCounter`: counts the distinct ids of a stream and their skew, in a few megabytes.

It counts exactly as long as all ids fit into its table. Beyond that it keeps two kinds of ids:

- a *sample of the ids*, not of the rows: those whose hash starts with a number of zeros (Wegman's adaptive sampling).
  Each is counted from its first occurrence on, so its count is exact. When there are too many, one more zero is
  required, which halves the sample. With 32,768 to 65,536 ids in the sample, the number of distinct ids is estimated
  with a standard error of at most 0.55 %. (A HyperLogLog would need 16 KiB for 0.8 %, but does not count occurrences of
  ids.)
- the *frequent ids*, as in lossy counting: whenever the table is full, the least frequent ids outside the sample are
  dropped.

The share of the top 1 % uses the frequent ids directly and the sampled ids as representatives of all others. Tests
measure its error: below 0.02 for 2 million Zipf-distributed ids, and below 0.003 for uniform ids.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.logs.inspection.hashing import Hashes

__all__ = ["FIRST_SLOTS", "MAX_SLOTS", "IdCounter", "slots_for"]

MAX_SLOTS = 1 << 18
"""Slots of 16 bytes: 4 MiB per column, part of which fits into a core's second-level cache. The errors above are for
this size."""
FIRST_SLOTS = 1 << 10
MAX_LOAD = 0.7


MAX_BYTES = 160 << 20
"""Total bytes of the counters of all columns, enough for 40 columns with `MAX_SLOTS`."""


def slots_for(num_columns: int) -> int:
    """Slots per counter such that all counters fit into 160 MiB; with 3,000 columns the error is 6.2 %."""
    slots = MAX_BYTES // (16 * max(1, num_columns))
    return min(MAX_SLOTS, max(FIRST_SLOTS, 1 << (slots.bit_length() - 1)))


class IdCounter:
    """Counts distinct ids and their occurrences in bounded memory; see the module docstring for method and errors.

    Attributes:
        num_values: Ids counted, including repeats.
    """

    def __init__(self, max_slots: int = MAX_SLOTS) -> None:
        """Create a counter whose table has at most `max_slots` slots, a power of two."""
        self._max_slots = max_slots
        self._keys = np.zeros(min(FIRST_SLOTS, max_slots), dtype=np.uint64)
        self._counts = np.zeros(len(self._keys), dtype=np.int64)
        self._used = 0
        self._level = 0
        self._lost = 0
        self.num_values = 0

    @property
    def is_exact(self) -> bool:
        """Whether counts are exact."""
        return self._level == 0

    def add(self, hashes: Hashes) -> None:
        """Add ids, given by their hashes."""
        self.num_values += len(hashes)
        done = 0
        while done < len(hashes):
            limit = int(MAX_LOAD * len(self._keys))
            done, self._used = _count(hashes, done, self._keys, self._counts, limit, self._used)
            if done < len(hashes):
                self._make_room()

    def num_distinct(self) -> float:
        """Number of distinct ids: exact, or estimated with a standard error of at most 0.55 % (with `MAX_SLOTS`)."""
        if self.is_exact:
            return float(self._used)
        keys, _ = self._entries()
        return float(self._is_sampled(keys).sum()) * 2.0**self._level

    def top_share(self, ratio: float = 0.01) -> float:
        """Share of the most frequent ids in all occurrences.

        Args:
            ratio: Fraction of the distinct ids, rounded up to a whole number.
        """
        if not self.num_values:
            return 0.0
        counts, weights = self.most_frequent()
        wanted = math.ceil(ratio * self.num_distinct() - 1e-9)
        before = np.cumsum(weights) - weights
        taken = np.clip(wanted - before, 0, weights)
        return min(1.0, float((taken * counts).sum()) / self.num_values)

    def most_frequent(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Occurrences of ids, in descending order, and for how many ids each entry stands; both [n]."""
        keys, counts = self._entries()
        weights = np.ones(len(keys))
        if not self.is_exact:
            # An id that occurred more often than any dropped one is in the table; the sample represents the others.
            sampled, frequent = self._is_sampled(keys), counts > self._lost
            weights[sampled & ~frequent] = 2.0**self._level
            keep = sampled | frequent
            counts, weights = counts[keep], weights[keep]
        order = np.argsort(-counts, kind="stable")
        return counts[order], weights[order]

    def hashes(self) -> Hashes:
        """The hashes of all distinct ids so far, if `is_exact`."""
        return self._entries()[0]

    @property
    def level(self) -> int:
        """Zeros that the hash of an id in `sample` begins with."""
        return self._level

    def sample(self) -> tuple[Hashes, npt.NDArray[np.int64]]:
        """The ids whose hash begins with `level` zeros, and how often each occurred: all ids if it `is_exact`."""
        keys, counts = self._entries()
        kept = self._is_sampled(keys)
        return keys[kept], counts[kept]

    def _entries(self) -> tuple[Hashes, npt.NDArray[np.int64]]:
        there = self._counts > 0
        return self._keys[there], self._counts[there]

    def _is_sampled(self, keys: Hashes) -> npt.NDArray[np.bool_]:
        return keys >> np.uint64(64 - self._level) == 0 if self._level else np.ones(len(keys), dtype=np.bool_)

    def _make_room(self) -> None:
        keys, counts = self._entries()
        num_slots = len(self._keys)
        if num_slots < self._max_slots:
            num_slots *= 4
        else:
            keys, counts = self._forget(keys, counts)
        num_slots = min(num_slots, self._max_slots)
        self._keys = np.zeros(num_slots, dtype=np.uint64)
        self._counts = np.zeros(num_slots, dtype=np.int64)
        self._used = len(keys)
        _insert(keys, counts, self._keys, self._counts)

    def _forget(self, keys: Hashes, counts: npt.NDArray[np.int64]) -> tuple[Hashes, npt.NDArray[np.int64]]:
        """Drop the least frequent ids outside the sample, to free a quarter of the slots."""
        room = self._max_slots // 4
        while self._level == 0 or self._is_sampled(keys).sum() > room:
            self._level += 1
        sampled = self._is_sampled(keys)
        others = np.sort(counts[~sampled])
        if len(others) > room:
            lost = int(others[-room - 1])
            keep = sampled | (counts > lost)
            self._lost += lost
            keys, counts = keys[keep], counts[keep]
        return keys, counts


@kernel()
def _count(
    hashes: Hashes, start: int, keys: Hashes, counts: npt.NDArray[np.int64], limit: int, used: int
) -> tuple[int, int]:
    mask = np.uint64(len(keys) - 1)
    for index in range(start, len(hashes)):
        key = hashes[index]
        slot = key & mask
        while counts[slot] != 0 and keys[slot] != key:
            slot = (slot + np.uint64(1)) & mask
        if counts[slot] == 0:
            if used >= limit:
                return index, used
            keys[slot] = key
            used += 1
        counts[slot] += 1
    return len(hashes), used


@kernel()
def _insert(
    keys: Hashes, counts: npt.NDArray[np.int64], table_keys: Hashes, table_counts: npt.NDArray[np.int64]
) -> None:
    mask = np.uint64(len(table_keys) - 1)
    for index in range(len(keys)):
        slot = keys[index] & mask
        while table_counts[slot] != 0:
            slot = (slot + np.uint64(1)) & mask
        table_keys[slot] = keys[index]
        table_counts[slot] = counts[index]
