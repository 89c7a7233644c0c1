"""What trainers send each other for a batch, as a function of where its rows are. Pure, and the same on both sides.

::

    key     kept by     read by     moves from      what is sent
    a       0           0, 1                        0 -> 1: value, before the step; 1 -> 0: gradient, after it
    b       1           1, 2        0               0 -> 1: state; 0 -> 2: value; 2 -> 1: gradient
    c       2           2                           nothing

A row that moves is sent to its readers by the trainer that has it, not by its next owner. A row whose owner does not
read it, but keeps it for a later step, is like a for all its readers. A key that was never trained on has no value to
send: each reader computes its first value.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headrace.placement.residency import AnnouncedBatch

__all__ = ["HandOver", "Values", "gradients_to", "hand_over", "values_for"]

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Values(NamedTuple):
    """Rows of which one trainer sends the values to another.

    Attributes:
        places: int64 [n], positions among the keys of the trainer that reads them.
        rows: int64 [n], their rows at the trainer that sends them.
    """

    places: Int64s
    rows: Int64s


class HandOver(NamedTuple):
    """Rows that move from one trainer to another.

    Attributes:
        places: int64 [n], positions among the keys of all trainers.
        before: int64 [n], their rows at the sender.
        after: int64 [n], their rows at the receiver.
    """

    places: Int64s
    before: Int64s
    after: Int64s


def hand_over(batch: AnnouncedBatch, source: int, target: int, num_trainers: int, *, late: bool) -> HandOver:
    """Rows that one trainer hands over to another for a batch.

    Args:
        batch: A batch that has its places.
        source: The trainer that sends them.
        target: The trainer that gets them.
        num_trainers: Number of trainers.
        late: Whether to give the late ones, or the others; see `AnnouncedBatch.is_late`.
    """
    assert batch.rows is not None
    assert batch.came_from is not None
    moves = (batch.came_from > 0) & (batch.came_from % num_trainers == source)
    places = np.flatnonzero(moves & (batch.rows % num_trainers == target) & (batch.is_late == late))
    return HandOver(places, batch.came_from[places] // num_trainers, batch.rows[places] // num_trainers)


def values_for(
    batch: AnnouncedBatch,
    is_new: Bools,
    source: int,
    target: int,
    num_trainers: int,
    *,
    late: bool,
    has_moved: bool = False,
) -> Values:
    """Rows that a trainer reads in a batch, but does not keep, and that another one sends it.

    Args:
        batch: A batch that has its places.
        is_new: bool [U], whether each key was never trained on.
        source: The trainer that sends them.
        target: The trainer that reads them.
        num_trainers: Number of trainers.
        late: As for `hand_over`.
        has_moved: Whether rows that move are already at their next owner.
    """
    assert batch.rows is not None
    assert batch.came_from is not None
    assert batch.is_late is not None
    read = batch.places[target]
    owner, came_from = batch.rows[read], batch.came_from[read]
    holder = np.where((came_from > 0) & (not has_moved), came_from, owner)
    is_sent = (owner % num_trainers != target) & (holder % num_trainers == source)
    places = np.flatnonzero(is_sent & ~is_new[read] & (batch.is_late[read] == late))
    return Values(places, holder[places] // num_trainers)


def gradients_to(batch: AnnouncedBatch, owner: int, reader: int, num_trainers: int) -> Int64s:
    """Positions among the keys of a reader, int64 [n], of those that another trainer, or itself, keeps."""
    assert batch.rows is not None
    return np.flatnonzero(batch.rows[batch.places[reader]] % num_trainers == owner)
