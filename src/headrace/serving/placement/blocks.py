"""`Blocks`: rows that are read about as often, so that a placement decides about hundreds of things, not millions.

UGache (SOSP 2023) puts entries with similar hotness into one block, by the logarithm of their rates, and limits blocks
in size. Here the block in which rows differ most is divided, until there are enough: with several servers that differ
in what is hot, classes of all combinations would be many, and most of them without importance.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace.serving.placement.problem import Float64s, PlacementProblem

__all__ = ["Blocks", "make_blocks"]

Int64s = npt.NDArray[np.int64]

NUM_VARIABLES = 1200
"""Variables of the linear programme that is solved in some ten milliseconds."""
SMALL = 1e-4
"""A block is not divided if its rows differ by less than this part of all reads."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """Blocks of rows.

    Attributes:
        rows: int64 [R], the rows, block by block.
        starts: int64 [B + 1], where each block starts in `rows`.
        rates: float64 [N, B], reads of all rows of a block by each server, per batch.
    """

    rows: Int64s
    starts: Int64s
    rates: Float64s

    @property
    def sizes(self) -> Int64s:
        """Rows of each block, int64 [B]."""
        return np.diff(self.starts)

    def __len__(self) -> int:
        return len(self.starts) - 1


def make_blocks(problem: PlacementProblem, *, most: int | None = None) -> Blocks:
    """Divide the rows that are read at all.

    Args:
        problem: The rows.
        most: Maximum number of blocks; None for as many as the programme is solved quickly with.
    """
    if most is None:
        most = max(NUM_VARIABLES // problem.num_servers**2, 16)
    total = problem.rates.sum(axis=0)
    rows = np.flatnonzero(total > 0)
    done: list[Int64s] = []
    open_blocks: list[tuple[float, int, Int64s]] = [_entry(problem.rates, rows, 0)] if len(rows) else []
    num_made = 1
    while open_blocks:
        difference, _, block = heapq.heappop(open_blocks)
        if len(done) + len(open_blocks) + 1 >= most or -difference <= SMALL * total.sum():
            done.append(block)
            continue
        for part in _divide(problem.rates, block):
            heapq.heappush(open_blocks, _entry(problem.rates, part, num_made))
            num_made += 1
    starts = np.cumsum([0, *map(len, done)])
    rows = np.concatenate([np.zeros(0, np.int64), *done])
    shape = len(problem.rates), 0
    rates = np.add.reduceat(problem.rates[:, rows], starts[:-1], axis=1) if done else np.zeros(shape)
    return Blocks(rows, starts.astype(np.int64), rates)


def _entry(rates: Float64s, rows: Int64s, number: int) -> tuple[float, int, Int64s]:
    """A block for the heap: those whose rows differ most come first."""
    return -float(_differences(rates[:, rows]).max()), number, rows


def _differences(rates: Float64s) -> Float64s:
    """For each server, the reads that would be wrong if all rows had the mean rate, float64 [N]."""
    found: Float64s = np.abs(rates - rates.mean(axis=1, keepdims=True)).sum(axis=1)
    return found


def _divide(rates: Float64s, rows: Int64s) -> tuple[Int64s, Int64s]:
    """The rows above the mean rate of the server where they differ most, and the others."""
    here = rates[:, rows]
    of_server = here[int(np.argmax(_differences(here)))]
    above = of_server > of_server.mean()
    return rows[above], rows[~above]
