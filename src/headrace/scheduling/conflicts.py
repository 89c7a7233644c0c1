"""Which keys of a batch another one touches: what an early pull must leave out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.embeddings.hashing import mix64
from headrace.embeddings.keys import Keys

__all__ = ["keys_in"]

Bools = npt.NDArray[np.bool_]


@kernel()
def _mark(
    spaces: npt.NDArray[np.int32],
    ids: npt.NDArray[np.int64],
    other_spaces: npt.NDArray[np.int32],
    other_ids: npt.NDArray[np.int64],
    slots: npt.NDArray[np.int32],
    found: Bools,
) -> None:
    mask = len(slots) - 1
    for i in range(len(other_ids)):
        slot = np.int64(mix64(np.uint64(other_ids[i]) ^ (np.uint64(other_spaces[i]) << np.uint64(40)))) & mask
        while slots[slot] >= 0:
            slot = (slot + 1) & mask
        slots[slot] = i
    for u in range(len(ids)):
        slot = np.int64(mix64(np.uint64(ids[u]) ^ (np.uint64(spaces[u]) << np.uint64(40)))) & mask
        found[u] = False
        while slots[slot] >= 0:
            i = slots[slot]
            if other_ids[i] == ids[u] and other_spaces[i] == spaces[u]:
                found[u] = True
                break
            slot = (slot + 1) & mask


def keys_in(keys: Keys, others: Keys) -> Bools:
    """For each key whether it is among the others, bool [U]; both unique in themselves."""
    found = np.empty(len(keys), dtype=np.bool_)
    slots = np.full(1 << max(4, (2 * len(others)).bit_length()), -1, dtype=np.int32)
    _mark(keys.spaces, keys.ids, others.spaces, others.ids, slots, found)
    return found
