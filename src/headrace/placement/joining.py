"""Joins the keys of all trainers in a step, and chooses the trainer that keeps each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.embeddings.ops.hashing import mix64

__all__ = ["MAX_TRAINERS", "choose_owners", "join_entries"]

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


def choose_owners(slots: Int64s, readers: Int64s, ids: Int64s, num_trainers: int) -> Int64s:
    """The trainer that keeps each row of a step, int64 [U]: the one that has it, if it reads it, otherwise a reader.

    Among several readers the id decides, so that they get equally many.

    Args:
        slots: int64 [U], where each row is, see `Residency`; 0 in the shards.
        readers: int64 [U], the trainers that read it, as bits; at least one.
        ids: int64 [U], the ids of the keys.
        num_trainers: Number of trainers.
    """
    owners = np.empty(len(slots), dtype=np.int64)
    _choose_owners(slots, readers, ids, num_trainers, owners)
    return owners


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
def _choose_owners(slots: Int64s, readers: Int64s, ids: Int64s, num_trainers: int, owners: Int64s) -> None:
    for u in range(len(slots)):
        trainer = slots[u] % num_trainers
        if slots[u] == 0:
            trainer = np.int64(mix64(np.uint64(ids[u])) % np.uint64(num_trainers))
        while not readers[u] >> trainer & 1:
            trainer = (trainer + 1) % num_trainers
        owners[u] = trainer
