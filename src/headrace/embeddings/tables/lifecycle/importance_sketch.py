"""The sketch of `importance`: what ids without a row are worth, in six bytes each.

bucket = 8 slots of (tag uint32, importance bf16); an id that is not in its bucket replaces the weakest slot with
probability new / (weakest + new) and gets their sum: randomized admission (Ben Basat et al., "Randomized admission
policy for efficient top-k and frequency estimation", INFOCOM 2017), whose estimates are right on average
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.embeddings.ops.hashing import mix64, multiply_shift
from headrace.embeddings.ops.prefetch import prefetch

__all__ = ["SLOTS", "SLOT_BYTES", "exchange", "find_slot", "remember", "scale_values", "slot_of", "values_of"]

SLOTS = 8
"""Slots of a bucket; their tags are half a cache line."""
SLOT_BYTES = 6

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]
Uint32s = npt.NDArray[np.uint32]
Uint16s = npt.NDArray[np.uint16]


def values_of(values: Uint16s) -> Float32s:
    """Importance float32 [C] of the slots; 0 for free ones."""
    return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)


@kernel()
def slot_of(tags: Uint32s, table: int, key: int) -> tuple[Any, Any]:
    """The first slot of the bucket of an id, and its tag."""
    hashed = mix64(mix64(np.uint64(key) ^ np.uint64(0xD1B54A32D192ED03)) + np.uint64(table))
    bucket = np.int64(multiply_shift(hashed, np.uint64(len(tags) // SLOTS)))
    tag = np.uint32(mix64(hashed) & np.uint64(0xFFFFFFFF))
    return bucket * SLOTS, tag if tag != np.uint32(0) else np.uint32(1)


@kernel()
def find_slot(tags: Uint32s, values: Uint16s, first: int, tag: np.uint32) -> tuple[Any, bool]:
    """The slot with a tag, or the weakest slot of the bucket; and whether the tag was found."""
    # All slots are compared, without branches: whether and where a tag is found cannot be predicted.
    found = np.int64(SLOTS)
    for slot in range(SLOTS):
        found = np.int64(slot) if tags[first + slot] == tag else found
    if found < SLOTS:
        return np.int64(first + found), True
    weakest = np.int64(values[first]) * SLOTS  # positive bf16 numbers are ordered as their bits are
    for slot in range(1, SLOTS):
        weakest = min(weakest, np.int64(values[first + slot]) * SLOTS + np.int64(slot))
    return np.int64(first + weakest % SLOTS), False


@kernel()
def exchange(
    tags: Uint32s,
    values: Uint16s,
    tables: Int32s,
    ids: Int64s,
    old_tables: Int32s,
    old_ids: Int64s,
    importance: Float32s,
) -> None:
    """Take ids [A] that got rows out of the sketch, and `remember` those [E] that lost rows."""
    tags_at, values_at = tags.ctypes.data, values.ctypes.data
    for i in range(len(old_ids)):
        first, tag = slot_of(tags, old_tables[i], old_ids[i])
        prefetch(tags_at + first * tags.itemsize)
        prefetch(values_at + first * values.itemsize)
    for i in range(len(ids)):
        first, tag = slot_of(tags, tables[i], ids[i])
        slot, is_found = find_slot(tags, values, first, tag)
        if is_found:
            tags[slot], values[slot] = np.uint32(0), np.uint16(0)
    remember(tags, values, old_tables, old_ids, importance)


@kernel()
def remember(tags: Uint32s, values: Uint16s, tables: Int32s, ids: Int64s, importance: Float32s) -> None:
    """Put ids into the sketch that are more important than the weakest of their bucket."""
    scratch = np.empty(1, dtype=np.float32)
    bits = scratch.view(np.uint32)
    for i in range(len(ids)):
        first, tag = slot_of(tags, tables[i], ids[i])
        slot, is_found = find_slot(tags, values, first, tag)
        scratch[0] = importance[i]
        value = np.uint16(bits[0] >> np.uint32(16))
        if is_found or value > values[slot]:
            tags[slot], values[slot] = tag, value


@kernel()
def scale_values(values: Uint16s, factor: np.float32) -> None:
    scratch = np.empty(1, dtype=np.float32)
    bits = scratch.view(np.uint32)
    for slot in range(len(values)):
        bits[0] = np.uint32(values[slot]) << np.uint32(16)
        scratch[0] *= factor
        values[slot] = np.uint16(bits[0] >> np.uint32(16))
