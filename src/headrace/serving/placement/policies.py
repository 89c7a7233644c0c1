"""`PlacementPolicy`: decides where rows lie. `programme` is ours; the others are what it is compared with."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from headrace.serving.placement.blocks import make_blocks
from headrace.serving.placement.mixed import mixed
from headrace.serving.placement.partition import partition
from headrace.serving.placement.problem import Placement, PlacementProblem, read_seconds
from headrace.serving.placement.programme import arrange, solve
from headrace.serving.placement.replicate import replicate

__all__ = ["POLICIES", "PlacementPolicy", "programme"]


class PlacementPolicy(Protocol):
    """A function from a problem to a placement, without state."""

    def __call__(self, problem: PlacementProblem) -> Placement:
        """Decide."""


def programme(problem: PlacementProblem) -> Placement:
    """The solution of the linear programme, in whole rows; a simpler placement where that is better by a little."""
    blocks = make_blocks(problem)
    solved = arrange(problem, blocks, solve(problem, blocks).parts)
    candidates = [solved, replicate(problem), partition(problem), mixed(problem)]
    return min(candidates, key=lambda each: float(np.max(read_seconds(problem, each))))


POLICIES: dict[str, PlacementPolicy] = {
    "programme": programme,
    "replicate": replicate,
    "partition": partition,
    "mixed": mixed,
}
