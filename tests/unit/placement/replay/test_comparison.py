"""Comparisons: results by cache and policy, refusals, progress, and policies of one's own."""

import sys
import types

import pytest
from streams import random_stream

from headrace.errors import ConfigError
from headrace.placement.replay import SHARD, Kind, Knowledge, Move, PlacementPolicy, Plan, Setting
from headrace.placement.replay.comparison import compare_policies, default_policies, result_values
from headrace.registry import PLACEMENT_POLICIES

STREAM = random_stream(1, 6, 4, 2, 50)
SETTING = Setting(STREAM.num_rows, 1, 4, window=4)


class Thief(PlacementPolicy):
    """Sends rows that no one has."""

    name = "thief"

    def plan(self, known: Knowledge) -> Plan:
        return Plan([Move(Kind.WRITE_BACK, 0, SHARD, known.now.rows)])


def test_results_come_by_cache_and_policy_and_steps_are_counted_to_the_end() -> None:
    steps: list[int] = []
    found = compare_policies(STREAM, ["none", "bagpipe", "lru"], SETTING, [None, 9], on_step=steps.append)
    assert [(result.policy, result.setting.capacity) for result in found.results] == [
        ("none", None), ("bagpipe", None), ("lru", None), ("none", 9), ("lru", 9)
    ]  # fmt: skip
    assert len(found.refusals) == 1
    assert found.refusals[0].startswith("bagpipe: needs more than")
    assert steps == sorted(steps)
    assert steps[-1] == 6 * len(STREAM)


def test_if_no_policy_works_the_reasons_are_the_error() -> None:
    with pytest.raises(ConfigError, match=r"cache: given 1 rows, expected at least \d"):
        compare_policies(STREAM, ["none", "lru"], SETTING, [1])


def test_a_policy_of_ones_own_that_plans_something_impossible_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("own_policies")
    module.Thief = Thief  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_policies", module)
    with pytest.raises(ConfigError, match="--policy own_policies:Thief: planned what cannot be done: trainer 0 is the"):
        compare_policies(STREAM, ["own_policies:Thief"], SETTING)


def test_the_usual_policies_exist_and_results_have_plain_values() -> None:
    for trainers in (1, 2):
        assert set(default_policies(trainers)) <= set(PLACEMENT_POLICIES)
    (result,) = compare_policies(STREAM, ["none"], SETTING).results
    values = result_values(result)
    assert values["rows_total"] == sum(values["rows"].values()) * len(STREAM)
    assert values["bytes_total"] == sum(values["bytes_by_step"]) == values["critical_bytes"] * len(STREAM)
