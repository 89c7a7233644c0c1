"""`PlacementProblem`: rows, how often servers read them, room, and what reads cost; and how good a placement is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Placement", "PlacementProblem", "ReadCosts", "read_seconds"]

Float64s = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class ReadCosts:
    """Measured seconds per row.

    Attributes:
        local: float64 [N], of a row that a server has.
        peer: float64 [N, N], of a row that server d reads from server s; the diagonal is not used.
        remote: float64 [N], of a row from the store that has all.
    """

    local: Float64s
    peer: Float64s
    remote: Float64s


@dataclass(frozen=True, eq=False)
class PlacementProblem:
    """Where rows may lie.

    Attributes:
        rates: float64 [N, R], how often each of N servers reads each of R rows, per batch.
        room: int64 [N], the rows that a server can hold.
        costs: What reads cost.
    """

    rates: Float64s
    room: npt.NDArray[np.int64]
    costs: ReadCosts

    @property
    def num_servers(self) -> int:
        """Number of servers N."""
        return len(self.rates)


@dataclass(frozen=True, eq=False)
class Placement:
    """Rows at servers.

    Attributes:
        held: bool [N, R], whether a server has a row.
    """

    held: Bools

    def sources(self, costs: ReadCosts) -> npt.NDArray[np.int64]:
        """int64 [N, R]: from which server each server reads each row, itself if it has it; N for the remote store."""
        num_servers, num_rows = self.held.shape
        turn = np.arange(num_rows) % num_servers  # where several peers are as good, they take turns
        found = np.full((num_servers, num_rows), num_servers, dtype=np.int64)
        for reader in range(num_servers):
            cost = np.full(num_rows, costs.remote[reader])
            for step in range(num_servers):
                source = (turn + step) % num_servers
                has_it = self.held[source, np.arange(num_rows)] & (source != reader)
                better = has_it & (costs.peer[reader, source] < cost)
                found[reader, better] = source[better]
                cost[better] = costs.peer[reader, source[better]]
            found[reader, self.held[reader]] = reader
        return found


def read_seconds(problem: PlacementProblem, placement: Placement) -> Float64s:
    """Mean seconds per batch of each server, float64 [N].

    A server asks peers and the remote store at the same time, and reads its own rows besides, so a batch takes as long
    as its own rows and the slowest source together.
    """
    costs, num_servers = problem.costs, problem.num_servers
    sources = placement.sources(costs)
    seconds = np.zeros(num_servers)
    for reader in range(num_servers):
        rows = np.bincount(sources[reader], weights=problem.rates[reader], minlength=num_servers + 1)
        waits = rows * np.append(costs.peer[reader], costs.remote[reader])
        waits[reader] = 0.0
        seconds[reader] = rows[reader] * costs.local[reader] + waits.max()
    return seconds
