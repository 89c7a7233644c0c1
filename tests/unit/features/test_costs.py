"""What features cost."""

import itertools

import numpy as np
import pyarrow as pa
import pytest

from headrace.features import FeaturePlan, measure_costs
from headrace.logs.schema import Schema

SCHEMA = Schema.from_dict({"labels": ["y"], "dense": ["a"], "ids": ["b"], "id_lists": ["c"]}, where="schema")
PLAN = FeaturePlan.from_config(
    {"dense": {"a": ["log1p"]}, "sparse": {"b": [{"hash": 10}], "pairs": {"from": ["b", "c"], "ops": ["cartesian"]}}},
    SCHEMA,
)
BATCH = pa.record_batch({"a": np.ones(10), "b": np.arange(10), "c": [[1, 2]] * 10})


def test_each_feature_costs_its_fastest_run_less_that_of_a_plan_without_features() -> None:
    # Two rounds each, of these durations: no features, then a, b and pairs.
    durations = [2, 1, 4, 9, 3, 2, 7, 8]
    readings = itertools.chain.from_iterable((0.0, float(duration)) for duration in durations)
    costs = measure_costs(PLAN, BATCH, rounds=2, clock=lambda: next(readings))
    assert [(cost.name, cost.ns_per_row) for cost in costs] == [("pairs", 6e8), ("a", 3e8), ("b", 1e8)]
    assert [cost.share_ratio for cost in costs] == [0.6, 0.3, 0.1]
    assert (costs[0].section, costs[0].operators) == ("sparse", ("cartesian",))


def test_every_feature_is_measured_on_the_cpu_clock() -> None:
    costs = measure_costs(PLAN, BATCH)
    assert {cost.name for cost in costs} == {"a", "b", "pairs"}
    assert all(cost.ns_per_row >= 0 for cost in costs)


def test_a_batch_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="given no rows"):
        measure_costs(PLAN, BATCH.slice(0, 0))
