"""What the scheduler accepts as a step, and how operators are named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from headrace.registry import STEP_POLICIES
from headrace.scheduling.cost import Costs
from headrace.scheduling.graph import ALL_GROUPS, Kind, Node, Operator, Part, Start, check_step, matches
from headrace.scheduling.policies import StepContext
from headrace.scheduling.policies.strategies import AT_ONCE, EARLY, IN_GROUPS

STEP = StepContext(3, 2, True, 1, Costs(2))
DENSE = Operator(Kind.DENSE, 3)


@pytest.mark.parametrize("name", sorted(STEP_POLICIES))
@pytest.mark.parametrize("num_groups", [1, 3])
@pytest.mark.parametrize("store_waits", [True, False])
def test_every_policy_builds_steps_that_can_run(name: str, num_groups: int, store_waits: bool) -> None:
    for strategy in STEP_POLICIES[name].strategies:
        step = replace(STEP, num_groups=num_groups, store_waits=store_waits, costs=Costs(num_groups))
        check_step(strategy.build(step), 3, num_groups)


def without(kind: Kind) -> list[Node]:
    return [node for node in IN_GROUPS.build(STEP) if node.operator.kind is not kind]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: [*AT_ONCE.build(STEP), Node(DENSE)], r"dense\(3\): built twice"),
        (
            lambda: [*AT_ONCE.build(STEP), Node(Operator(Kind.DENSE, 4))],
            r"dense\(4\): does not belong to the step of batch 3",
        ),
        (
            lambda: AT_ONCE.build(STEP)[1:],
            "features: expected operators that cover every feature group and every row exactly once",
        ),
        (lambda: without(Kind.PULL), "pull: expected operators that cover every"),
        (lambda: [*without(Kind.DENSE), Node(Operator(Kind.DENSE, 3, part=Part(0, 2)))], "dense: expected operators"),
        (lambda: without(Kind.PUSH), r"push\(3\): expected once"),
        (
            lambda: [*without(Kind.DENSE), Node(DENSE, (Start((Operator(Kind.PUSH, 3),)),))],
            r"push\(3\), update\(3\), dense\(3\): can never start, because they need each other or operators outside",
        ),
        (
            lambda: [*without(Kind.DENSE), Node(DENSE, (Start((Operator(Kind.DEFERRED_PULL, 3),)),))],
            r"dense\(3\): can never start,",
        ),
    ],
)
def test_a_step_that_cannot_run_is_refused_with_the_operator(build: Callable[[], list[Node]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_step(build(), 3, 2)


def test_a_need_covers_all_groups_and_parts_unless_it_names_one() -> None:
    pull = Operator(Kind.PULL, 3, 1, Part(0, 2))
    assert matches(Operator(Kind.PULL, 3), pull)
    assert matches(Operator(Kind.PULL, 3, ALL_GROUPS, Part(0, 2)), pull)
    assert not matches(Operator(Kind.PULL, 3, ALL_GROUPS, Part(1, 2)), pull)
    assert not matches(Operator(Kind.PULL, 3, 0), pull)
    assert not matches(Operator(Kind.FEATURES, 3), pull)


def test_operators_name_their_group_and_part() -> None:
    assert str(Operator(Kind.PULL, 3)) == "pull(3)"
    assert str(Operator(Kind.PULL, 3, 1, Part(0, 2))) == "pull(3, 1, part 1 of 2)"


def test_parts_together_have_every_row_once() -> None:
    parts = [Part(number, 3).rows(10) for number in range(3)]
    assert [row for part in parts for row in part] == list(range(10))


def test_equal_contexts_build_equal_steps() -> None:
    assert EARLY.build(STEP) == EARLY.build(replace(STEP))
