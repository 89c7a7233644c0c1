"""64-bit mixing, range reduction by multiply-shift, and seeds from names: all randomness of embeddings."""

import hashlib

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel

__all__ = ["key_stream", "key_streams", "mix64", "multiply_shift", "name_seed", "name_seeds", "unit_float"]

U64 = np.uint64


@kernel()
def mix64(x: np.uint64) -> np.uint64:
    """The finalizer of SplitMix64: a bijection of uint64 in which every input bit changes half of the output bits."""
    x = (x ^ (x >> U64(30))) * U64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> U64(27))) * U64(0x94D049BB133111EB)
    return x ^ (x >> U64(31))


@kernel()
def multiply_shift(x: np.uint64, size: np.uint64) -> np.uint64:
    """Map a well-mixed uint64 evenly into `[0, size)`: the high half of the 128-bit product, without a division."""
    low_mask = U64(0xFFFFFFFF)
    x_low, x_high = x & low_mask, x >> U64(32)
    s_low, s_high = size & low_mask, size >> U64(32)
    middle = x_high * s_low + ((x_low * s_low) >> U64(32))
    middle_low = (middle & low_mask) + x_low * s_high
    return x_high * s_high + (middle >> U64(32)) + (middle_low >> U64(32))


@kernel()
def key_stream(table_seed: np.uint64, key: int) -> np.uint64:
    """Random stream of a (seed, table, id)."""
    return mix64(table_seed ^ mix64(U64(key)))


@kernel()
def key_streams(
    table_seeds: npt.NDArray[np.uint64], tables: npt.NDArray[np.int32], ids: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """`key_stream` of several keys, as int64 [U] bits."""
    streams = np.empty(len(ids), dtype=np.int64)
    for u in range(len(ids)):
        streams[u] = np.int64(key_stream(table_seeds[tables[u]], ids[u]))
    return streams


@kernel()
def unit_float(state: np.uint64, index: np.uint64) -> np.float32:
    """Number `index` of the stream `state`: a float32 in [0, 1) with 24 random bits."""
    bits = mix64(state + (index + U64(1)) * U64(0x9E3779B97F4A7C15)) >> U64(40)
    return np.float32(bits) * np.float32(2.0**-24)


def name_seed(seed: int, *names: str) -> int:
    """A uint64 that depends on the seed and the names only, so that adding a feature changes no other feature."""
    digest = hashlib.blake2b("\0".join([str(seed), *names]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def name_seeds(seed: int, names: list[str], purpose: str) -> npt.NDArray[np.uint64]:
    """`name_seed` of several names, uint64 [len(names)]."""
    return np.array([name_seed(seed, purpose, name) for name in names], dtype=np.uint64)
