"""Joins the keys of all trainers in a step, and chooses the trainer that keeps each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.embeddings.ops.hashing import mix64

__all__ = ["MAX_TRAINERS", "Prices", "choose_owners", "join_entries", "popcount"]

MAX_TRAINERS = 62
"""Maximum number of trainers that keep rows: the readers of a key are bits of an int64."""

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]


def join_entries(parts: Sequence[Int32s], marks: Int32s) -> tuple[Int32s, tuple[Int32s, ...], Int64s]:
    """Join entries of `KeyEntries`, unique within each trainer's part.

    Args:
        parts: int32 [U_r], entries of each trainer's keys.
        marks: int32 [num_entries], zeros, which are zeros again afterwards.

    Returns:
        The distinct entries int32 [U] in order of first occurrence; for each trainer, the places of its keys among
        them, int32 [U_r]; and the readers of each, int64 [U], as bits.
    """
    num_entries = sum(map(len, parts))
    entries, readers = np.empty(num_entries, dtype=np.int32), np.empty(num_entries, dtype=np.int64)
    places, num_joined = [], 0
    for trainer, part in enumerate(parts):
        places.append(np.empty(len(part), dtype=np.int32))
        num_joined = _join(part, trainer, marks, entries, readers, num_joined, places[-1])
    entries, readers = entries[:num_joined], readers[:num_joined]
    marks[entries] = 0
    return entries, tuple(places), readers


class Prices(NamedTuple):
    """What it costs to have a row at one trainer and not at another.

    Attributes:
        move_bytes: Bytes of a row with its state.
        use_bytes: Bytes of a value and a gradient, for a step of a trainer that does not keep the row.
    """

    move_bytes: int
    use_bytes: int


def choose_owners(
    slots: Int64s, readers: Int64s, next_readers: Int64s, ids: Int64s, num_trainers: int, prices: Prices
) -> Int64s:
    """The trainer that keeps each row of a step, int64 [U]: the cheapest for this step and the next one that uses it.

    It is a reader, or the trainer that has the row. Among equally cheap ones, a reader that has the row comes before
    another reader, and that one before a trainer that does not read it; among readers of rows in the shards, the id
    decides, so that they get equally many.

    Args:
        slots: int64 [U], where each row is, see `Residency`; 0 in the shards.
        readers: int64 [U], the trainers that read it, as bits; at least one.
        next_readers: int64 [U], those that read it in the next step that uses it; 0 if none is known.
        ids: int64 [U], the ids of the keys.
        num_trainers: Number of trainers.
        prices: The price of a move and of a use.
    """
    owners = np.empty(len(slots), dtype=np.int64)
    _choose_owners(slots, readers, next_readers, ids, num_trainers, prices.move_bytes, prices.use_bytes, owners)
    return owners


@kernel()
def popcount(bits: int) -> int:
    """Number of trainers in a set of them, as bits."""
    count = 0
    while bits:
        bits &= bits - 1
        count += 1
    return count


@kernel()
def _join(
    part: Int32s, trainer: int, marks: Int32s, entries: Int32s, readers: Int64s, num_joined: int, places: Int32s
) -> int:
    bit = np.int64(1) << np.int64(trainer)
    for u in range(len(part)):
        entry = part[u]
        place = marks[entry] - 1
        if place < 0:
            place = num_joined
            num_joined += 1
            marks[entry] = num_joined
            entries[place], readers[place] = entry, bit
        else:
            readers[place] |= bit
        places[u] = place
    return num_joined


@kernel()
def _choose_owners(
    slots: Int64s,
    readers: Int64s,
    next_readers: Int64s,
    ids: Int64s,
    num_trainers: int,
    move_bytes: int,
    use_bytes: int,
    owners: Int64s,
) -> None:
    back = min(move_bytes, use_bytes)  # if the next step is not the owner's
    for u in range(len(slots)):
        holder = slots[u] % num_trainers
        first = holder
        if slots[u] == 0:
            first = np.int64(mix64(np.uint64(ids[u])) % np.uint64(num_trainers))
            holder = -1
        least = np.int64(-1)
        for turn in range(num_trainers):
            trainer = (first + turn) % num_trainers
            reads = readers[u] >> trainer & 1
            if not reads and trainer != holder:
                continue
            price = np.int64(0) if reads else np.int64(use_bytes)
            if holder not in (-1, trainer):
                price += move_bytes
            if next_readers[u] != 0 and not next_readers[u] >> trainer & 1:
                price += back
            price = 2 * price + (0 if reads else 1)  # a reader, if it costs no more
            if least < 0 or price < least:
                least, owners[u] = price, trainer
