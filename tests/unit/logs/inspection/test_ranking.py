"""Each number of a log ranks the label alone, on a sample from all of the log."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.auc import area_under_curve
from headrace.logs import Schema
from headrace.logs.clustering import cluster_log
from headrace.logs.inspection import rank_numbers

SCHEMA = Schema.from_dict(
    {"labels": ["click"], "dense": ["good", "noise", "leak"], "session_id": "session"}, where="test"
)


def write_log(path: Path, rows: int = 4_000) -> dict[str, np.ndarray]:
    """A log in which `good` helps, `leak` is the negated label, and `noise` says nothing; some numbers are null."""
    rng = np.random.default_rng(5)
    click = rng.random(rows) < 0.2
    columns = {
        "click": click.astype(np.int8),
        "good": np.round(click + rng.normal(0, 1, rows), 1),
        "noise": rng.random(rows),
        "leak": -click.astype(np.float32),
    }
    table = {name: pa.array(values) for name, values in columns.items()}
    table["good"] = pa.array(columns["good"], mask=np.arange(rows) % 7 == 0)
    table["session"] = pa.array(np.arange(rows) // 4)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path, row_group_size=500)
    columns["good"] = np.where(np.arange(rows) % 7 == 0, 0.0, columns["good"])
    return columns


def pairs_in_order(values: np.ndarray, click: np.ndarray) -> float:
    difference = values[click == 1][:, None] - values[click == 0][None, :]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def test_a_label_that_is_a_number_has_no_ranking(tmp_path: Path) -> None:
    write_log(tmp_path / "a.parquet", rows=100)
    number = {"labels": [{"name": "click", "allowed": None}], "dense": ["good"]}
    assert rank_numbers(tmp_path, Schema.from_dict(number, where="test")) == []


def test_each_number_has_the_share_of_pairs_in_the_right_order(tmp_path: Path) -> None:
    columns = write_log(tmp_path / "a.parquet")
    found = rank_numbers(tmp_path, SCHEMA)
    assert [ranking.column for ranking in found] == ["good", "noise", "leak"]
    for ranking in found:
        assert ranking.num_rows == 4_000
        assert ranking.auc == pytest.approx(pairs_in_order(columns[ranking.column], columns["click"]), abs=1e-12)
    assert found[2].auc == 0.0


def test_a_sample_comes_from_all_of_the_log_and_is_no_larger_than_asked(tmp_path: Path) -> None:
    rows = 200_000
    late = np.arange(rows) >= rows // 2  # all positive rows are in the second half
    table = pa.table({"click": late.astype(np.int8), "good": late.astype(np.float32)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10_000)
    (found,) = rank_numbers(
        tmp_path, Schema.from_dict({"labels": ["click"], "dense": ["good"]}, where="test"), max_rows=40_000
    )
    assert (found.auc, found.num_rows) == (1.0, 39_996)


def test_numbers_of_a_clustered_log_rank_its_rows(tmp_path: Path) -> None:
    columns = write_log(tmp_path / "logs" / "a.parquet")
    cluster_log(tmp_path / "logs", tmp_path / "clustered", SCHEMA)
    found = rank_numbers(tmp_path / "clustered", SCHEMA)
    assert found[0].auc == pytest.approx(pairs_in_order(columns["good"], columns["click"]), abs=1e-12)


def test_without_numbers_or_with_one_kind_of_label_there_is_no_rank(tmp_path: Path) -> None:
    pq.write_table(pa.table({"click": [0, 0], "good": [1.0, 2.0]}), tmp_path / "a.parquet")
    (found,) = rank_numbers(tmp_path, Schema.from_dict({"labels": ["click"], "dense": ["good"]}, where="test"))
    assert math.isnan(found.auc)
    assert rank_numbers(tmp_path, Schema.from_dict({"labels": ["click"]}, where="test")) == []
    assert math.isnan(area_under_curve(np.zeros(0), np.zeros(0))[0])
