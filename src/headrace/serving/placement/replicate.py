"""`replicate`: each server has the rows that it reads most, as if it was alone."""

from __future__ import annotations

import numpy as np

from headrace.serving.placement.problem import Placement, PlacementProblem

__all__ = ["replicate"]


def replicate(problem: PlacementProblem) -> Placement:
    """Fill each server's room with its most read rows."""
    held = np.zeros(problem.rates.shape, dtype=np.bool_)
    for server, rates in enumerate(problem.rates):
        held[server, np.argsort(-rates, kind="stable")[: problem.room[server]]] = True
    return Placement(held & (problem.rates > 0))
