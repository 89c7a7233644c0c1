"""The linear programme of a placement, solved with HiGHS, and how its solution becomes whole rows.

For each block b of s_b rows, of which server d reads r_db rows per batch:

    h_bd            part of the block that server d has                         0 <= h_bd <= 1
    p_bds           part that d reads from its peer s                           0 <= p_bds <= h_bs
    minimise z      z >= local_d sum_b r_db h_bd + peer_ds sum_b r_db p_bds     for each d and s
                    z >= local_d sum_b r_db h_bd + remote_d sum_b r_db (1 - h_bd - sum_s p_bds)
                    h_bd + sum_s p_bds <= 1
                    sum_b s_b h_bd <= room_d

UGache (SOSP 2023) places whole blocks, with a mixed-integer programme; rows of a block are alike, so parts of blocks
are as good, and the programme is linear.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.errors import HeadraceError, MissingExtra
from headrace.serving.placement.blocks import Blocks
from headrace.serving.placement.problem import Float64s, Placement, PlacementProblem

__all__ = ["Solution", "arrange", "solve"]

SLOPE = 1e-3
"""Weight of the mean time of servers beside that of the slowest one, so that the others are good as well."""


@dataclass(frozen=True, eq=False)
class Solution:
    """The best parts of blocks.

    Attributes:
        parts: float64 [B, N], the part of each block that each server has.
        seconds: The time of the slowest server, the least that any placement of these blocks reaches.
    """

    parts: Float64s
    seconds: float


def solve(problem: PlacementProblem, blocks: Blocks) -> Solution:
    """Solve the programme.

    Raises:
        MissingExtra: scipy is not installed.
        HeadraceError: The solver failed; the text has its reason.
    """
    try:
        from scipy import optimize, sparse
    except ImportError as error:
        raise MissingExtra("scipy", "serve") from error
    matrix, bounds = _constraints(problem, blocks, sparse)
    num_servers, num_blocks = problem.num_servers, len(blocks)
    num_parts = num_servers * num_servers * num_blocks
    cost = np.zeros(num_parts + 1 + num_servers)
    cost[num_parts] = 1.0
    cost[num_parts + 1 :] = SLOPE / num_servers
    highs = np.append(np.ones(num_parts), np.full(1 + num_servers, np.inf))
    bounds_of_variables = np.stack([np.zeros_like(highs), highs], axis=1)
    found = optimize.linprog(cost, A_ub=matrix, b_ub=bounds, bounds=bounds_of_variables, method="highs")
    if found.x is None:
        raise HeadraceError(f"placement: no solution: {found.message}")
    own = np.arange(num_servers)
    held = found.x[:num_parts].reshape(num_servers, num_servers, num_blocks)[own, own]
    return Solution(np.clip(held.T, 0.0, 1.0), float(found.x[num_parts]))


def _constraints(problem: PlacementProblem, blocks: Blocks, sparse: Any) -> tuple[Any, Float64s]:
    """The rows of `matrix x <= bounds`.

    Variables: for each reader d, source s and block, the part that d reads from s, or has if it is s; then the time of
    the slowest server, and that of each.
    """
    num_servers, num_blocks = problem.num_servers, len(blocks)
    num_parts = num_servers * num_servers * num_blocks
    rates, costs = blocks.rates, problem.costs
    kinds: list[Any] = []
    bounds: list[Float64s] = []

    def place(reader: int, source: int) -> slice:
        first = (reader * num_servers + source) * num_blocks
        return slice(first, first + num_blocks)

    for reader in range(num_servers):
        rows = np.zeros((num_servers + 1, num_parts + 1 + num_servers))
        local = rates[reader] * costs.local[reader]
        rows[:, place(reader, reader)] = local
        rows[:, num_parts + 1 + reader] = -1.0
        for source in range(num_servers):
            if source != reader:
                rows[source, place(reader, source)] += rates[reader] * costs.peer[reader, source]
            rows[num_servers, place(reader, source)] -= rates[reader] * costs.remote[reader]
        limits = np.zeros(num_servers + 1)
        limits[num_servers] = -rates[reader].sum() * costs.remote[reader]
        room = np.zeros((1, rows.shape[1]))
        room[0, place(reader, reader)] = blocks.sizes / max(int(problem.room[reader]), 1)
        slowest = np.zeros((1, rows.shape[1]))
        slowest[0, num_parts + 1 + reader], slowest[0, num_parts] = 1.0, -1.0
        kinds += [sparse.csr_array(each) for each in (rows, room, slowest)]
        bounds += [limits, np.ones(1), np.zeros(1)]
        kinds.append(_whole(reader, num_servers, num_blocks, rows.shape[1], sparse))
        bounds.append(np.ones(num_blocks))
        for source in range(num_servers):
            if source != reader:
                kinds.append(_no_more_than_held(place(reader, source), place(source, source), rows.shape[1], sparse))
                bounds.append(np.zeros(num_blocks))
    return sparse.vstack(kinds, format="csc"), np.concatenate(bounds)


def _whole(reader: int, num_servers: int, num_blocks: int, width: int, sparse: Any) -> Any:
    """A reader reads at most the whole of each block from servers."""
    block = np.tile(np.arange(num_blocks), num_servers)
    columns = reader * num_servers * num_blocks + np.arange(num_servers * num_blocks)
    return sparse.csr_array((np.ones(len(block)), (block, columns)), shape=(num_blocks, width))


def _no_more_than_held(read: slice, held: slice, width: int, sparse: Any) -> Any:
    """A reader reads no more of a block from a peer than that one has."""
    num_blocks = read.stop - read.start
    block = np.tile(np.arange(num_blocks), 2)
    columns = np.concatenate([np.arange(read.start, read.stop), np.arange(held.start, held.stop)])
    values = np.repeat([1.0, -1.0], num_blocks)
    return sparse.csr_array((values, (block, columns)), shape=(num_blocks, width))


def arrange(problem: PlacementProblem, blocks: Blocks, parts: Float64s) -> Placement:
    """Whole rows for parts of blocks.

    Servers take their rows of a block one after the other, around a circle, so that together they have as many
    different rows as possible. Room that rounding leaves is filled with the rows that a server reads most.

    Args:
        problem: The rows.
        blocks: Their blocks.
        parts: float64 [B, N], the part of each block that each server has.
    """
    num_servers, num_rows = problem.rates.shape
    held = np.zeros((num_servers, num_rows), dtype=np.bool_)
    for block, (start, size) in enumerate(zip(blocks.starts, blocks.sizes, strict=False)):
        rows, first = blocks.rows[start : start + size], 0
        for server in range(num_servers):
            count = int(parts[block, server] * size + 1e-6)
            held[server, rows[np.arange(first, first + count) % size]] = True
            first += count
    for server in range(num_servers):
        left = int(problem.room[server] - held[server].sum())
        if left > 0:
            value = np.where(held[server], -1.0, _value(problem, held, server))
            best = np.argpartition(-value, min(left, num_rows - 1))[:left]
            held[server, best[value[best] > 0]] = True
    return Placement(held)


def _value(problem: PlacementProblem, held: npt.NDArray[np.bool_], server: int) -> Float64s:
    """Seconds per batch that a server saves with each further row, float64 [R]."""
    costs = problem.costs
    others = [other for other in range(problem.num_servers) if other != server]
    cost = np.full(held.shape[1], costs.remote[server])
    for other in others:
        cost = np.where(held[other], np.minimum(cost, costs.peer[server, other]), cost)
    saved: Float64s = problem.rates[server] * np.maximum(cost - costs.local[server], 0.0)
    return saved
