"""Checks the columns of a request: ids in range, counts, finite gradients."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.embeddings.keys import Keys
from headrace.embeddings.ops.key_sets import first_repeated_key
from headrace.embeddings.shards.table_group import TableGroupSpec
from headrace.errors import ShardError

__all__ = ["check_gradients", "check_keys", "first_bad_key", "first_row_not_finite"]

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]


def check_keys(keys: Keys, spec: TableGroupSpec) -> None:
    """Check the keys of a request.

    Raises:
        ShardError: An id of a direct or hashed table is out of range, a count is negative, or a key is duplicated; the
            text names field, id and table.
    """
    bad = first_bad_key(keys.tables, keys.ids, keys.counts, spec.sizes)
    if bad >= 0:
        name, size = _table(keys, bad, spec), spec.sizes[keys.tables[bad]]
        if keys.counts[bad] < 0:
            raise ShardError(f"count: given {keys.counts[bad]} for id {keys.ids[bad]} of {name}, expected 0 or more")
        raise ShardError(f"{name}: id {keys.ids[bad]}, expected 0 <= id < {size}")
    twice = first_repeated_key(keys.tables, keys.ids)
    if twice >= 0:
        raise ShardError(f"id: {keys.ids[twice]} occurs twice in {_table(keys, twice, spec)}, expected no duplicates")


def check_gradients(keys: Keys, gradients: Float32s, spec: TableGroupSpec) -> None:
    """Check that gradients float32 [U, dim] are finite, because others would destroy rows.

    Raises:
        ShardError: A gradient is infinite or NaN; the text names table and id.
    """
    bad = first_row_not_finite(gradients.view(np.uint32))
    if bad >= 0:
        raise ShardError(
            f"gradients: given infinity or NaN for id {keys.ids[bad]} of {_table(keys, bad, spec)}, "
            "expected finite numbers"
        )


def _table(keys: Keys, place: int, spec: TableGroupSpec) -> str:
    return f"table {spec.tables[int(keys.tables[place])].name}"


@kernel()
def first_bad_key(tables: Int32s, ids: Int64s, counts: Int32s, sizes: Int64s) -> int:
    """The first key with a negative count or an id out of its table's range (sizes [T], 0 for any id), or -1."""
    for u in range(len(ids)):
        size = sizes[tables[u]]
        if counts[u] < 0 or (size > 0 and not 0 <= ids[u] < size):
            return u
    return -1


@kernel()
def first_row_not_finite(bits: npt.NDArray[np.uint32]) -> int:
    """The first row of float32 [U, dim], given as uint32 bits, that contains an infinity or NaN, or -1."""
    exponent = np.uint32(0x7F800000)
    for u in range(len(bits)):
        largest = np.uint32(0)
        for d in range(bits.shape[1]):
            largest = max(largest, bits[u, d] & exponent)
        if largest == exponent:
            return u
    return -1
