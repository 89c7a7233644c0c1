"""Checks the columns of a request: ids in range, counts, finite gradients."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.embeddings.keys import Keys
from headrace.embeddings.ops.key_sets import first_repeated_key
from headrace.embeddings.shards.table_group import TableGroupSpec
from headrace.embeddings.tables.key_states import KeyStates
from headrace.errors import ShardError

__all__ = ["check_gradients", "check_keys", "check_states", "first_bad_key", "first_row_not_finite"]

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


def check_states(keys: Keys, states: KeyStates, spec: TableGroupSpec, *, version: int) -> None:
    """Check the states of keys that a trainer returns, because wrong ones would destroy rows.

    Raises:
        ShardError: A version, a count or a position is out of range, or a number is infinite or NaN; the text names it,
            and table and id where it has one.
    """
    for name, places in (("places", states.places), ("waiting", states.waiting)):
        if len(places) and not (places[0] >= 0 and places[-1] < len(keys) and (np.diff(places) > 0).all()):
            raise ShardError(f"{name}: expected ascending positions of {len(keys)} keys")
    for name, versions in (("version", states.columns["version"]), ("last_seen", states.last_seen)):
        if len(versions) and not (versions.min() >= 1 and versions.max() <= version):
            raise ShardError(f"{name}: given {versions.min()} to {versions.max()}, expected 1 to {version}")
    for name, counts in (("frequency", states.columns["frequency"]), ("sightings", states.sightings)):
        if len(counts) and counts.min() < 0:
            raise ShardError(f"{name}: given {counts.min()}, expected 0 or more")
    for name, column in states.columns.items():
        if column.dtype == np.float32 and not np.isfinite(column).all():
            place = int(states.places[np.argmin(np.isfinite(column).all(axis=1))])
            raise ShardError(
                f"{name}: given infinity or NaN for id {keys.ids[place]} of {_table(keys, place, spec)}, "
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
