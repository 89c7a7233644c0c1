"""Where keys of one lookup are among those of another."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.embeddings.hashing import mix64
from headrace.embeddings.keys import Keys

__all__ = ["find_keys", "keys_in"]

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]


@kernel()
def _find(spaces: Int32s, ids: Int64s, other_spaces: Int32s, other_ids: Int64s, slots: Int32s, places: Int64s) -> None:
    """Hashes the others with linear probing, then looks each key up."""
    mask = len(slots) - 1
    for i in range(len(other_ids)):
        slot = np.int64(mix64(np.uint64(other_ids[i]) ^ (np.uint64(other_spaces[i]) << np.uint64(40)))) & mask
        while slots[slot] >= 0:
            slot = (slot + 1) & mask
        slots[slot] = i
    for u in range(len(ids)):
        slot = np.int64(mix64(np.uint64(ids[u]) ^ (np.uint64(spaces[u]) << np.uint64(40)))) & mask
        places[u] = -1
        while slots[slot] >= 0:
            i = slots[slot]
            if other_ids[i] == ids[u] and other_spaces[i] == spaces[u]:
                places[u] = i
                break
            slot = (slot + 1) & mask


def find_keys(keys: Keys, others: Keys) -> Int64s:
    """The place of each key among the others, -1 where it is not, int64 [U]; both unique in themselves."""
    places = np.empty(len(keys), dtype=np.int64)
    slots = np.full(1 << max(4, (2 * len(others)).bit_length()), -1, dtype=np.int32)
    _find(keys.spaces, keys.ids, others.spaces, others.ids, slots, places)
    return places


def keys_in(keys: Keys, others: Keys) -> npt.NDArray[np.bool_]:
    """For each key whether it is among the others, bool [U]; both unique in themselves."""
    return find_keys(keys, others) >= 0
