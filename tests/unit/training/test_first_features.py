"""Features that a first job gives to numbers: those with gaps, with far values, and on scales that log1p cannot use."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.features import FeaturePlan
from headrace.logs.inspection import inspect_log
from headrace.training.first_features import number_features

NUM_ROWS = 4_000
RNG = np.random.default_rng(0)
COUNTS = RNG.geometric(0.1, NUM_ROWS)
NORMAL = RNG.normal(0, 1, NUM_ROWS)


def features_of(folder: Path, **columns: Any) -> dict[str, tuple[Any, str]]:
    """The chosen features; checks that the plan accepts them, and that numbers have a common scale."""
    path = folder / "a.parquet"
    pq.write_table(pa.table({"click": np.arange(NUM_ROWS) % 2, **columns}), path)
    found = inspect_log(path)
    assert found.schema is not None
    features = {name: (value, reason) for name, value, reason in number_features(found, found.schema)}
    plan = FeaturePlan.from_config({"dense": {name: value for name, (value, _) in features.items()}}, found.schema)
    dense = plan.apply(pq.read_table(path).combine_chunks().to_batches()[0]).dense.numpy()
    numbers = dense[:, [plan.dense_names.index(name) for name in columns]]
    assert np.abs(numbers.mean(axis=0)).max() < 0.05
    assert numbers.std(axis=0).min() > 0.45
    assert numbers.std(axis=0).max() < 2.1
    assert np.abs(numbers).max() < 12
    return features


def names_of(operators: list[Any]) -> list[str]:
    return [operator if isinstance(operator, str) else next(iter(operator)) for operator in operators]


def test_numbers_of_any_scale_and_skew_are_standardized_after_log1p(tmp_path: Path) -> None:
    found = features_of(
        tmp_path,
        count=COUNTS,
        z=NORMAL,
        price=RNG.lognormal(2, 1, NUM_ROWS) * 1e6,
        is_new=(RNG.random(NUM_ROWS) < 0.01).astype(np.int64),
        rate=RNG.beta(2, 300, NUM_ROWS).astype(np.float32),
        published=(2000 + RNG.integers(0, 25, NUM_ROWS)).astype(np.int32),
    )
    assert all(names_of(operators) == ["log1p", "standardize"] for operators, _ in found.values())
    logs = np.log1p(COUNTS)
    assert found["count"][0][1]["standardize"] == pytest.approx({"mean": logs.mean(), "std": logs.std()}, rel=0.005)
    assert found["count"][1] == "Nine tenths of the values are between 1 and 30.5."


def test_missing_values_are_a_feature_of_their_own(tmp_path: Path) -> None:
    gaps = np.arange(NUM_ROWS) % 5 == 0
    found = features_of(
        tmp_path,
        age=pa.array(COUNTS, mask=gaps),
        score=np.where(gaps, np.nan, NORMAL),
        few=pa.array(COUNTS, mask=np.arange(NUM_ROWS) % 500 == 0),
        score_missing=NORMAL,
    )
    assert list(found) == ["age", "age_missing", "score", "score_missing_", "few", "score_missing"]
    assert found["age_missing"] == (
        {"from": "age", "ops": ["is_null"]},
        "20% of age are missing: 1 for these, else 0.",
    )
    assert found["score_missing_"][0] == {"from": "score", "ops": ["is_null"]}


def test_values_far_beyond_all_others_are_clamped(tmp_path: Path) -> None:
    high, both = COUNTS.astype(np.float64), NORMAL * 100
    high[7], both[3], both[9] = 1e12, -1e30, 1e30
    found = features_of(tmp_path, high=high, both=both)
    operators, reason = found["high"]
    assert names_of(operators) == ["clamp", "log1p", "standardize"]
    assert operators[0] == {"clamp": {"max": pytest.approx(66, abs=4)}}
    assert reason.startswith("All but 0.2% of the values are between 1 and ")
    assert reason.endswith(", the farthest is 1e+12.")
    assert found["both"][0][0]["clamp"].keys() == {"min", "max"}


def test_a_column_of_one_value_is_not_divided_by_zero(tmp_path: Path) -> None:
    table = pa.table({"click": [0, 1], "price": [7.5, 7.5]})
    pq.write_table(table, tmp_path / "a.parquet")
    found = inspect_log(tmp_path / "a.parquet")
    assert found.schema is not None
    ((name, operators, _),) = number_features(found, found.schema)
    assert (name, operators) == ("price", ["log1p"])
