"""`SeenKeys`: a compact set of the keys that may have a state in a shard, without false negatives.

A blocked Bloom filter (Putze, Sanders and Singler, "Cache-, hash- and space-efficient Bloom filters", 2007): all bits
of a key are in one cache line, so that a look-up costs one cache miss. A key that was never added is reported as seen
with a small probability, and is then asked for in vain; a key that was added is always reported.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.embeddings.keys import Keys
from headrace.embeddings.ops.hashing import mix64

__all__ = ["SeenKeys"]

BLOCK_BITS = 512
NUM_BITS = 6
"""Bits set per key: near the optimum for 8 to 16 bits per key."""

Uint64s = npt.NDArray[np.uint64]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]


class SeenKeys:
    """A set of keys with false positives, but no false negatives.

    Args:
        num_bytes: Memory; with 1.5 bytes per key, about 1 % of other keys are reported too.

    Attributes:
        blocks: uint64 [num_blocks, 8], the bits.
    """

    def __init__(self, num_bytes: int) -> None:
        self.blocks: Uint64s = np.zeros((max(1, num_bytes * 8 // BLOCK_BITS), BLOCK_BITS // 64), dtype=np.uint64)

    @property
    def num_bytes(self) -> int:
        """Memory in bytes."""
        return self.blocks.nbytes

    def merge(self, blocks: Uint64s) -> None:
        """Add the keys of another set, given by its bits.

        Raises:
            ValueError: The other set has another size.
        """
        if blocks.shape != self.blocks.shape:
            raise ValueError(f"blocks: given {blocks.shape}, expected {self.blocks.shape}")
        self.blocks |= blocks

    def add(self, keys: Keys) -> None:
        """Add keys."""
        _add(self.blocks, keys.tables, keys.ids)

    def contains(self, keys: Keys) -> npt.NDArray[np.bool_]:
        """Whether each key may have been added, bool [U]."""
        found = np.empty(len(keys), dtype=np.bool_)
        _contains(self.blocks, keys.tables, keys.ids, found)
        return found


@kernel()
def _mask_of(bits: np.uint64, word: int) -> np.uint64:
    """The bits of a key in a word of its block: nine bits of the hash choose each."""
    mask = np.uint64(0)
    for _ in range(NUM_BITS):
        place = bits & np.uint64(BLOCK_BITS - 1)
        if place >> np.uint64(6) == np.uint64(word):
            mask |= np.uint64(1) << (place & np.uint64(63))
        bits >>= np.uint64(9)
    return mask


@kernel()
def _hash(table: int, key: int) -> np.uint64:
    return mix64(mix64(np.uint64(key) ^ np.uint64(0x9E3779B97F4A7C15)) + np.uint64(table))


@kernel()
def _add(blocks: Uint64s, tables: Int32s, ids: Int64s) -> None:
    for u in range(len(ids)):
        hashed = _hash(tables[u], ids[u])
        block, bits = hashed % np.uint64(len(blocks)), mix64(hashed)
        for word in range(blocks.shape[1]):
            blocks[block, word] |= _mask_of(bits, word)


@kernel()
def _contains(blocks: Uint64s, tables: Int32s, ids: Int64s, found: npt.NDArray[np.bool_]) -> None:
    for u in range(len(ids)):
        hashed = _hash(tables[u], ids[u])
        block, bits = hashed % np.uint64(len(blocks)), mix64(hashed)
        is_in = True
        for _ in range(NUM_BITS):
            place = bits & np.uint64(BLOCK_BITS - 1)
            is_in &= (blocks[block, place >> np.uint64(6)] >> (place & np.uint64(63))) & np.uint64(1) != 0
            bits >>= np.uint64(9)
        found[u] = is_in
