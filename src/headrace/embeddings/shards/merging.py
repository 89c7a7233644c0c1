"""Merges the updates of several trainers into unique keys with one gradient each, in trainer order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.embeddings.keys import Keys
from headrace.embeddings.ops.key_sets import empty_slots, key_slot

__all__ = ["PlacedUpdate", "TrainerUpdate", "join_keys", "merge_placed", "merge_updates"]

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class TrainerUpdate:
    """A trainer's update in one step.

    Attributes:
        keys: Unique keys.
        gradients: float32 [U, dim], gradients of the mean loss over the trainer's rows.
        num_rows: Number of rows in the trainer's batch.
        lr_factor: Factor of the learning rates in this step.
    """

    keys: Keys
    gradients: Float32s
    num_rows: int
    lr_factor: float = 1.0


def merge_updates(updates: Sequence[TrainerUpdate]) -> tuple[Keys, Float32s]:
    """Merge updates into unique keys and their gradients of the mean loss over all trainers' rows.

    The mean over all rows is the mean of the trainers' means, weighted by their rows. Sums are in trainer order, so
    they do not depend on arrival order. A single update is returned unchanged.
    """
    if len(updates) == 1:
        return updates[0].keys, updates[0].gradients
    total = sum(update.num_rows for update in updates)
    num_keys = sum(len(update.keys) for update in updates)
    tables, ids = np.empty(num_keys, np.int32), np.empty(num_keys, np.int64)
    counts, gradients = np.empty(num_keys, np.int32), np.empty((num_keys, updates[0].gradients.shape[1]), np.float32)
    slots = empty_slots(num_keys)
    used = 0
    for update in updates:
        share = np.float32(update.num_rows / total) if total else np.float32(0)
        keys = update.keys
        used = _add(
            keys.tables, keys.ids, keys.counts, update.gradients, share, slots, used, tables, ids, counts, gradients
        )
    return Keys(tables[:used], ids[:used], counts[:used]), gradients[:used]


@dataclass(frozen=True, eq=False)
class PlacedUpdate:
    """A trainer's part of an update of keys that are numbered from 0.

    Attributes:
        places: int64 [U], number of each of its keys.
        counts: int32 [U], occurrences of each.
        gradients: float32 [U, dim], gradients of the mean loss over the trainer's rows.
        num_rows: Number of rows in the trainer's batch.
    """

    places: Int64s
    counts: Int32s
    gradients: Float32s
    num_rows: int


def merge_placed(updates: Sequence[PlacedUpdate], num_keys: int) -> tuple[Int32s, Float32s]:
    """Merge updates as `merge_updates` does, with the same bits, where the number of each key is known.

    Args:
        updates: Updates of all trainers, at least two, in trainer order.
        num_keys: Number of keys K, each of which is in an update.

    Returns:
        Counts int32 [K] and gradients float32 [K, dim].
    """
    total, dim = sum(update.num_rows for update in updates), updates[0].gradients.shape[1]
    counts, gradients = np.empty(num_keys, dtype=np.int32), np.empty((num_keys, dim), dtype=np.float32)
    is_begun = np.zeros(num_keys, dtype=np.bool_)
    for update in updates:
        share = np.float32(update.num_rows / total) if total else np.float32(0)
        _add_placed(update.places, update.counts, update.gradients, share, is_begun, counts, gradients)
    return counts, gradients


def join_keys(parts: Sequence[Keys]) -> Keys:
    """The union of the keys of several trainers, with zero counts. A single part is returned unchanged."""
    if len(parts) == 1:
        return parts[0]
    pairs = np.unique(np.concatenate([np.stack([keys.tables, keys.ids]) for keys in parts], axis=1), axis=1)
    return Keys(pairs[0].astype(np.int32), pairs[1].copy(), np.zeros(pairs.shape[1], dtype=np.int32))


@kernel(inline=True)
def _merge_key(
    u: int,
    i: int,
    is_first: bool,
    share: np.float32,
    from_counts: Int32s,
    from_gradients: Float32s,
    counts: Int32s,
    gradients: Float32s,
) -> None:
    """Add the part i of a trainer to the sum of key u, or begin the sum with the first trainer that has the key."""
    if is_first:
        counts[u] = from_counts[i]
        for d in range(gradients.shape[1]):
            gradients[u, d] = share * from_gradients[i, d]
    else:
        counts[u] += from_counts[i]
        for d in range(gradients.shape[1]):
            gradients[u, d] += share * from_gradients[i, d]


@kernel()
def _add(
    from_tables: Int32s,
    from_ids: Int64s,
    from_counts: Int32s,
    from_gradients: Float32s,
    share: np.float32,
    slots: Int32s,
    used: int,
    tables: Int32s,
    ids: Int64s,
    counts: Int32s,
    gradients: Float32s,
) -> int:
    for i in range(len(from_ids)):
        table, key = from_tables[i], from_ids[i]
        slot = key_slot(slots, tables, ids, table, key)
        u = int(slots[slot])
        is_first = u < 0
        if is_first:
            u = used
            used += 1
            slots[slot] = u
            tables[u], ids[u] = table, key
        _merge_key(u, i, is_first, share, from_counts, from_gradients, counts, gradients)
    return used


@kernel()
def _add_placed(
    places: Int64s,
    from_counts: Int32s,
    from_gradients: Float32s,
    share: np.float32,
    is_begun: npt.NDArray[np.bool_],
    counts: Int32s,
    gradients: Float32s,
) -> None:
    for i in range(len(places)):
        u = places[i]
        _merge_key(u, i, not is_begun[u], share, from_counts, from_gradients, counts, gradients)
        is_begun[u] = True
