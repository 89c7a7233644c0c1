"""Which trainer gets which sample of a global batch of a replay. The batch keeps its samples, and every trainer an
equal share."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.placement.replay.movement import Kind, RowBytes
from headrace.placement.replay.stream import GlobalBatch, Int8s, Int32s, Int64s
from headrace.placement.samples import assignment as pure
from headrace.placement.samples.assignment import NUM_SWEEPS, SampleRows

__all__ = ["assign_by_hits", "place_samples", "transfer_prices"]

Bools = npt.NDArray[np.bool_]


def place_samples(
    batch: GlobalBatch, holders: Int64s, num_trainers: int, row_bytes: RowBytes, *, num_sweeps: int = NUM_SWEEPS
) -> Int8s:
    """Assign samples where the rows of the batch cost the fewest bytes, see `transfer_prices`.

    Args:
        batch: The batch.
        holders: int64 [rows of the stream], trainers that hold each row; 0 at the shards.
        num_trainers: Number of trainers W, which divides the number of samples.
        row_bytes: Prices.
        num_sweeps: Passes over all pairs of trainers.

    Returns:
        int8 [B], the trainer of each sample.
    """
    place_of = np.empty(len(holders), dtype=np.int32)
    place_of[batch.rows] = np.arange(len(batch.rows), dtype=np.int32)
    return pure.place_samples(
        SampleRows(batch.starts, place_of[batch.values]),
        holders[batch.rows],
        transfer_prices(num_trainers, row_bytes)[None],
        np.full(num_trainers, batch.num_samples // num_trainers, dtype=np.int64),
        num_sweeps=num_sweeps,
    )


@lru_cache(maxsize=4)
def transfer_prices(num_trainers: int, row_bytes: RowBytes) -> Int64s:
    """Bytes that a row costs if some trainers hold it and some read it next, with the gradients of that step.

    Returns:
        int64 [W + 1, W + 1, W + 1], by the number of trainers that hold the row (0 if it is at the shards), of those
        that read it, and of those that do both.
    """
    copy, gradient, fetch = (row_bytes.of(kind) for kind in (Kind.HAND_OVER, Kind.GRADIENT, Kind.FETCH))
    held, read, both = np.ogrid[: num_trainers + 1, : num_trainers + 1, : num_trainers + 1]
    later = (read - 1) * gradient
    to_owner = (held - 1) * gradient + (read - np.minimum(both, 1)) * copy
    to_both = both * (held - 1) * gradient + (read - both) * copy
    moved = np.where(both > 0, np.minimum(to_owner, to_both), to_owner)
    prices: Int64s = np.where(held == 0, read * fetch, moved) + later
    return np.where(read == 0, 0, prices).astype(np.int64)


def assign_by_hits(batch: GlobalBatch, is_valid: Bools, first: int) -> Int8s:
    """Assign samples one by one to the trainer with room that holds most of their rows: Herald's greedy rule.

    Args:
        batch: The batch.
        is_valid: bool [W, rows of the stream], whether a trainer holds an up-to-date copy.
        first: The trainer that wins ties; the others follow in order.

    Returns:
        int8 [B], the trainer of each sample.
    """
    assignment = np.empty(batch.num_samples, dtype=np.int8)
    _greedy(batch.starts, batch.values, is_valid, first, assignment)
    return assignment


@kernel()
def _greedy(starts: Int64s, values: Int32s, is_valid: Bools, first: int, assignment: Int8s) -> None:
    num_samples, num_trainers = len(assignment), len(is_valid)
    room = np.full(num_trainers, num_samples // num_trainers, dtype=np.int64)
    for sample in range(num_samples):
        best, most = -1, -1
        for step in range(num_trainers):
            trainer = (first + step) % num_trainers
            if room[trainer] == 0:
                continue
            hits = 0
            for place in range(starts[sample], starts[sample + 1]):
                hits += is_valid[trainer, values[place]]
            if hits > most:
                best, most = trainer, hits
        assignment[sample] = best
        room[best] -= 1
