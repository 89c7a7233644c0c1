"""`mixed`: the most read rows at every server, and further ones at one server each; the best border between the two."""

from __future__ import annotations

import numpy as np

from headrace.serving.placement.partition import partition
from headrace.serving.placement.problem import Placement, PlacementProblem, read_seconds

__all__ = ["mixed"]

STEPS = 16
"""Borders that are tried: sixteenths of the room."""


def mixed(problem: PlacementProblem) -> Placement:
    """Try several parts of the room for rows that every server has."""
    order = np.argsort(-problem.rates.sum(axis=0), kind="stable")
    candidates = [_with_border(problem, order, step / STEPS) for step in range(STEPS + 1)]
    return min(candidates, key=lambda each: float(np.max(read_seconds(problem, each))))


def _with_border(problem: PlacementProblem, order: np.ndarray, share: float) -> Placement:
    num_everywhere = int(problem.room.min() * share)
    everywhere, rest = order[:num_everywhere], order[num_everywhere:]
    others = PlacementProblem(problem.rates[:, rest], problem.room - num_everywhere, problem.costs)
    held = np.zeros(problem.rates.shape, dtype=np.bool_)
    held[:, everywhere] = True
    held[:, rest] = partition(others).held
    return Placement(held)
