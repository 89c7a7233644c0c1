"""Orders of groups, against all orders there are."""

from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from headrace.scheduling.bounds import critical_path_order, johnson_order, makespan

seconds = st.floats(0.0, 10.0, allow_nan=False)
jobs = st.lists(st.tuples(seconds, seconds), min_size=1, max_size=6)


@given(jobs)
def test_johnson_order_is_as_short_as_the_best_of_all_orders(pairs: list[tuple[float, float]]) -> None:
    cpu_s, network_s = zip(*pairs, strict=True)
    best = min(makespan(order, cpu_s, network_s) for order in permutations(range(len(pairs))))
    assert makespan(johnson_order(cpu_s, network_s), cpu_s, network_s) <= best + 1e-9


@given(jobs, st.integers(2, 3))
def test_critical_path_order_is_within_twice_the_best_on_several_cores(
    pairs: list[tuple[float, float]], num_cores: int
) -> None:
    cpu_s, network_s = zip(*pairs, strict=True)
    best = min(makespan(order, cpu_s, network_s, num_cores) for order in permutations(range(len(pairs))))
    assert makespan(critical_path_order(cpu_s, network_s), cpu_s, network_s, num_cores) <= 2 * best + 1e-9


@given(jobs)
def test_orders_hold_every_job_once(pairs: list[tuple[float, float]]) -> None:
    cpu_s, network_s = zip(*pairs, strict=True)
    for order in (johnson_order(cpu_s, network_s), critical_path_order(cpu_s, network_s)):
        assert sorted(order) == list(range(len(pairs)))


def test_makespan_of_a_worked_example() -> None:
    # cpu   AABBB
    # link    AAA BBB   A is done at 2, its pull at 5; B at 5, its pull at 8
    assert makespan([0, 1], [2, 3], [3, 3]) == 8
    assert makespan([1, 0], [2, 3], [3, 3]) == 9
    assert makespan([0, 1], [2, 3], [3, 3], num_cores=2) == 8


def test_a_group_that_communicates_long_goes_before_one_that_computes_long() -> None:
    assert johnson_order([1, 5], [5, 1]) == [0, 1]
    assert johnson_order([5, 1], [1, 5]) == [1, 0]
