"""How rows reach the trainers that read them next: the cheapest exchange among the trainers that hold them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.placement.joining import popcount
from headrace.placement.replay.movement import ALL, Action, Drop, Kind, Move, RowBytes
from headrace.placement.replay.policy import held_by
from headrace.placement.replay.stream import Int8s, Int32s, Int64s

__all__ = ["Routes", "choose_routes", "route_moves"]

Bools = npt.NDArray[np.bool_]

AT_SHARD, TO_OWNER, EXCHANGE, REDUCE_ALL = 0, 1, 2, 3


class Routes(NamedTuple):
    """How each row of a step reaches its readers.

    Attributes:
        kinds: int8 [U]: AT_SHARD; TO_OWNER, the holders' gradients go to one of them, which hands the row over;
            EXCHANGE, holders send each other their gradients; REDUCE_ALL, all trainers hold and read the row.
        owners: int8 [U], the holder that collects gradients and hands the row over; -1 at the shard.
    """

    kinds: Int8s
    owners: Int8s


def choose_routes(rows: Int32s, holders: Int64s, readers: Int64s, num_trainers: int, row_bytes: RowBytes) -> Routes:
    """Choose the cheapest route of each row; ties go to the one with fewer hops.

    The hot tier of FEC (SIGMOD'23, rows synchronized with an all-reduce as if dense) follows from prices: for a row
    that all trainers hold and read, an all-reduce needs no ids, and is cheaper than gradients to an owner and copies
    from it.

    Args:
        rows: int32 [U].
        holders: int64 [U], trainers that hold the row, each with its own gradient of the last use; 0 at the shard.
        readers: int64 [U], trainers that read it next.
        num_trainers: Number of trainers.
        row_bytes: Prices.
    """
    kinds = np.empty(len(rows), dtype=np.int8)
    owners = np.empty(len(rows), dtype=np.int8)
    copy, gradient, reduced = (float(row_bytes.of(kind)) for kind in (Kind.HAND_OVER, Kind.GRADIENT, Kind.ALL_REDUCE))
    _choose(rows, holders, readers, num_trainers, copy, gradient, reduced, kinds, owners)
    return Routes(kinds, owners)


def route_moves(routes: Routes, rows: Int32s, holders: Int64s, readers: Int64s, chosen: Bools) -> list[Action]:
    """The movements of chosen rows, and the drops of copies that will be outdated."""
    taken = chosen & (routes.kinds != AT_SHARD)
    if not taken.any():
        return []
    rows, holders, readers = rows[taken], holders[taken], readers[taken]
    kinds, owners = routes.kinds[taken], routes.owners[taken]
    present = [w for w in range(64) if np.bitwise_or.reduce(holders | readers) >> w & 1]
    gradients: list[Action] = [Move(Kind.ALL_REDUCE, ALL, ALL, rows[kinds == REDUCE_ALL])]
    copies: list[Action] = []
    drops: list[Action] = []
    for source in present:
        held = held_by(holders, source)
        for target in present:
            if source == target:
                continue
            collects = (kinds == TO_OWNER) & (owners == target)
            collects |= (kinds == EXCHANGE) & held_by(holders & readers, target)
            gradients.append(Move(Kind.GRADIENT, source, target, rows[held & collects]))
            lacks = held_by(readers & ~holders, target) | ((kinds == TO_OWNER) & held_by(readers, target))
            copies.append(Move(Kind.HAND_OVER, source, target, rows[(owners == source) & lacks]))
        drops.append(Drop(source, rows[held & ~held_by(readers, source)]))
    return [action for action in (*gradients, *copies, *drops) if len(action.rows)]


@kernel()
def _pick(bits: int, start: int, num_trainers: int) -> int:
    """One of a set of trainers, the first from `start` on, so that owners are spread evenly."""
    for step in range(num_trainers):
        trainer = (start + step) % num_trainers
        if bits >> trainer & 1:
            return trainer
    return -1


@kernel()
def _choose(
    rows: Int32s,
    holders: Int64s,
    readers: Int64s,
    num_trainers: int,
    copy: float,
    gradient: float,
    reduced: float,
    kinds: Int8s,
    owners: Int8s,
) -> None:
    everyone = (np.int64(1) << np.int64(num_trainers)) - 1
    for u in range(len(rows)):
        held, read = holders[u], readers[u]
        if held == 0:
            kinds[u], owners[u] = AT_SHARD, -1
            continue
        both = held & read
        owner = _pick(both if both else held, rows[u] % num_trainers, num_trainers)
        num_held, num_read, num_both = popcount(held), popcount(read), popcount(both)
        kind = TO_OWNER
        least = (num_held - 1) * gradient + (num_read - (1 if both else 0)) * copy
        exchanged = num_both * (num_held - 1) * gradient + (num_read - num_both) * copy
        if both and num_held > 1 and exchanged <= least:
            kind, least = EXCHANGE, exchanged
        if num_held > 1 and held == everyone and read == everyone and 2 * (num_trainers - 1) * reduced <= least:
            kind = REDUCE_ALL
        kinds[u], owners[u] = kind, owner
