"""Placements: the programme is as good as its optimum, better than simple ones where that is possible, and fits."""

import numpy as np
import pytest

pytest.importorskip("scipy", reason="needs scipy, of the extra serve")

from headrace.serving.placement.blocks import make_blocks
from headrace.serving.placement.policies import POLICIES
from headrace.serving.placement.problem import Placement, PlacementProblem, ReadCosts, read_seconds
from headrace.serving.placement.programme import arrange, solve

ROWS = 5_000


def problem_of(
    exponent: float, *, room: float, shared: float, peer_s: float = 1e-6, remote_s: float = 1e-5, servers: int = 2
) -> PlacementProblem:
    """Rows read by Zipf's law; `shared` is the part whose hotness is the same at all servers."""
    random = np.random.default_rng(1)
    law = np.arange(1, ROWS + 1.0) ** -exponent
    order = random.permutation(ROWS)
    rates = np.empty((servers, ROWS))
    for server in range(servers):
        own = order.copy()
        moved = random.choice(ROWS, int(ROWS * (1 - shared)), replace=False)
        own[moved] = own[random.permutation(moved)]
        rates[server, own] = 1000 * law / law.sum()
    costs = ReadCosts(np.full(servers, 1e-7), np.full((servers, servers), peer_s), np.full(servers, remote_s))
    return PlacementProblem(rates, np.full(servers, int(room * ROWS)), costs)


PROBLEMS = [
    problem_of(1.2, room=0.2, shared=1.0),
    problem_of(1.05, room=0.1, shared=0.5),
    problem_of(0.9, room=0.02, shared=0.0),
    problem_of(1.05, room=0.2, shared=1.0, servers=3),
]


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("name", POLICIES)
def test_no_server_has_more_rows_than_room(problem: PlacementProblem, name: str) -> None:
    placement = POLICIES[name](problem)
    assert (placement.held.sum(axis=1) <= problem.room).all()
    assert not placement.held[:, problem.rates.sum(axis=0) == 0].any()


@pytest.mark.parametrize("problem", PROBLEMS)
def test_whole_rows_are_nearly_as_good_as_the_optimum(problem: PlacementProblem) -> None:
    best = solve(problem, make_blocks(problem)).seconds
    found = read_seconds(problem, POLICIES["programme"](problem)).max()
    assert found <= 1.05 * best
    assert found <= min(read_seconds(problem, POLICIES[name](problem)).max() for name in POLICIES) + 1e-12


def test_equal_servers_share_what_neither_can_hold_alone() -> None:
    problem = problem_of(1.2, room=0.2, shared=1.0)
    seconds = {name: read_seconds(problem, policy(problem)).max() for name, policy in POLICIES.items()}
    assert seconds["programme"] < 0.8 * min(seconds["replicate"], seconds["partition"])


def test_expensive_peers_make_it_replicate() -> None:
    problem = problem_of(1.05, room=0.1, shared=1.0, peer_s=1e-5, remote_s=1e-5)
    solved = read_seconds(problem, POLICIES["programme"](problem)).max()
    assert solved == pytest.approx(read_seconds(problem, POLICIES["replicate"](problem)).max(), rel=1e-3)


def test_free_peers_make_it_partition() -> None:
    problem = problem_of(0.9, room=0.5, shared=1.0, peer_s=1e-7)
    placement = POLICIES["programme"](problem)
    assert placement.held.any(axis=0).all()


def test_rows_come_from_the_cheapest_server_that_has_them() -> None:
    costs = ReadCosts(np.zeros(3), np.array([[0, 2, 1], [1, 0, 9], [1, 1, 0.0]]), np.full(3, 5.0))
    held = np.array([[1, 0, 0, 0], [0, 1, 1, 0], [0, 1, 0, 0]], dtype=bool)
    assert Placement(held).sources(costs).tolist() == [[0, 2, 1, 3], [0, 1, 1, 3], [0, 2, 1, 3]]


def test_blocks_have_every_row_that_is_read_once_and_their_number_is_limited() -> None:
    problem = problem_of(1.05, room=0.1, shared=0.5)
    problem.rates[:, 7] = 0.0
    blocks = make_blocks(problem, most=60)
    assert len(blocks) == 60
    assert sorted(blocks.rows.tolist()) == [row for row in range(ROWS) if row != 7]
    assert blocks.rates.sum(axis=1) == pytest.approx(problem.rates.sum(axis=1))
    rows = blocks.rows[blocks.starts[3] : blocks.starts[4]]
    assert blocks.rates[:, 3] == pytest.approx(problem.rates[:, rows].sum(axis=1))


def test_parts_of_a_block_at_several_servers_overlap_as_little_as_possible() -> None:
    problem = problem_of(0.0, room=0.4, shared=1.0)
    blocks = make_blocks(problem)
    placement = arrange(problem, blocks, np.tile([0.4, 0.4], (len(blocks), 1)))
    assert placement.held.sum(axis=0).max() == 1


def test_nothing_read_needs_no_rows() -> None:
    problem = problem_of(1.0, room=0.1, shared=1.0)
    problem.rates[:] = 0.0
    assert len(make_blocks(problem)) == 0
    assert not POLICIES["programme"](problem).held.any()
