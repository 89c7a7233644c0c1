"""`partition`: the rows that all servers together read most, each at one server."""

from __future__ import annotations

import numpy as np

from headrace.serving.placement.problem import Placement, PlacementProblem

__all__ = ["partition"]


def partition(problem: PlacementProblem) -> Placement:
    """Deal the most read rows out to the servers in turn, as long as they have room."""
    total = problem.rates.sum(axis=0)
    rows = np.argsort(-total, kind="stable")[: int(problem.room.sum())]
    turns = np.concatenate([np.arange(room) for room in problem.room])
    owners = np.repeat(np.arange(problem.num_servers), problem.room)
    owners = owners[np.lexsort((owners, turns))][: len(rows)]
    held = np.zeros(problem.rates.shape, dtype=np.bool_)
    held[owners, rows] = True
    return Placement(held & (total > 0))
