"""Assignments of samples: exact for additive costs, in any shares, and near the optimum where samples share rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.placement.samples.assignment import SampleRows, assign_by_cost, place_samples
from headrace.placement.samples.planning import row_prices

Int64s = npt.NDArray[np.int64]

MOVE, USE = 92, 128


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(1, 1000), st.integers(0, 10**6))
@settings(max_examples=200)
def test_additive_costs_are_minimized_exactly(shares: list[int], highest: int, seed: int) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    costs = np.random.default_rng(seed).integers(0, highest, (sum(shares), len(shares)))
    assignment = assign_by_cost(costs, np.array(shares))
    assert np.bincount(assignment, minlength=len(shares)).tolist() == shares
    trainer_of = np.repeat(np.arange(len(shares)), shares)
    samples, places = optimize.linear_sum_assignment(costs[:, trainer_of])
    assert costs[np.arange(len(costs)), assignment].sum() == costs[samples, trainer_of[places]].sum()


def random_rows(rng: np.random.Generator, num_samples: int, num_rows: int) -> SampleRows:
    """Four rows a sample, some far more frequent than others."""
    found = [np.unique((num_rows * rng.random(4) ** 2).astype(np.int32)) for _ in range(num_samples)]
    return SampleRows(np.cumsum([0, *map(len, found)]), np.concatenate(found))


def cost_of(rows: SampleRows, holders: Int64s, moves: Int64s, assignment: npt.NDArray[np.int8]) -> int:
    """Bytes of an assignment, by hand: a move if no reader holds the row, and a use of each reader after the first."""
    readers: dict[int, set[int]] = {}
    for sample, trainer in enumerate(assignment.tolist()):
        for row in rows.values[rows.starts[sample] : rows.starts[sample + 1]].tolist():
            readers.setdefault(row, set()).add(trainer)
    total = int(moves[np.arange(len(assignment)), assignment].sum())
    for row, read in readers.items():
        held = {trainer for trainer in range(moves.shape[1]) if int(holders[row]) >> trainer & 1}
        total += USE * (len(read) - 1) + (min(MOVE, USE) if held and not held & read else 0)
    return total


def lowest_cost(rows: SampleRows, holders: Int64s, moves: Int64s, shares: list[int]) -> float:
    """The lowest cost of all assignments: an integer program, solved by HiGHS."""
    optimize = pytest.importorskip("scipy.optimize")
    num_samples, num_trainers = moves.shape
    used = np.unique(rows.values)
    num_x, num_y = num_samples * num_trainers, len(used) * num_trainers
    costs = np.concatenate([moves.reshape(-1), np.full(num_y, USE), np.full(len(used), min(MOVE, USE))])
    constraints, lower, upper = [], [], []

    def add(places: list[int], factors: list[int], low: float, high: float) -> None:
        line = np.zeros(len(costs))
        line[places] = factors
        constraints.append(line)
        lower.append(low)
        upper.append(high)

    for sample in range(num_samples):
        add([sample * num_trainers + t for t in range(num_trainers)], [1] * num_trainers, 1, 1)
        for row in np.searchsorted(used, rows.values[rows.starts[sample] : rows.starts[sample + 1]]).tolist():
            for t in range(num_trainers):
                add([num_x + row * num_trainers + t, sample * num_trainers + t], [1, -1], 0, np.inf)
    for t, share in enumerate(shares):
        add([sample * num_trainers + t for sample in range(num_samples)], [1] * num_samples, share, share)
    for row, held in enumerate(holders[used].tolist()):
        here = [num_x + row * num_trainers + t for t in range(num_trainers) if held >> t & 1]
        if here:
            add([*here, num_x + num_y + row], [1] * (len(here) + 1), 1, np.inf)
    found = optimize.milp(
        costs,
        constraints=optimize.LinearConstraint(np.array(constraints), lower, upper),
        integrality=np.ones(len(costs)),
        bounds=optimize.Bounds(0, 1),
    )
    assert found.success, found.message
    return float(found.fun) - USE * len(used)


@pytest.mark.parametrize(("shares", "gap"), [([8, 8], 0.1), ([5, 6, 5], 0.05)])
def test_the_gap_to_the_optimum_is_small(shares: list[int], gap: float) -> None:
    """The sum over random batches of samples that share rows, against the optimum of HiGHS."""
    rng, found, least, in_order = np.random.default_rng(0), 0, 0.0, 0
    origin = np.repeat(np.arange(len(shares)), shares)
    for _ in range(8):
        rows = random_rows(rng, sum(shares), 60)
        holders = np.where(rng.random(60) < 0.7, 1 << rng.integers(0, len(shares), 60), 0)
        moves = np.where(np.arange(len(shares)) == origin[:, None], 0, 30)
        placed = place_samples(rows, holders, row_prices(len(shares), MOVE, USE)[None], np.array(shares), moves=moves)
        assert np.bincount(placed, minlength=len(shares)).tolist() == shares
        found += cost_of(rows, holders, moves, placed)
        in_order += cost_of(rows, holders, moves, origin.astype(np.int8))
        least += lowest_cost(rows, holders, moves, shares)
    print(f"{len(shares)} trainers: {found / least - 1:.1%} above the optimum; in order {in_order / least - 1:.1%}")
    assert least <= found <= (1 + gap) * least
    assert in_order > 1.15 * least
