"""Groups found by inspecting: what changes together, in mixed sessions as in clustered ones, within bounded memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from session_logs import SCHEMA, session_rows, write_log

from headrace.logs.inspection import GroupSample, inspect_log

WIDTHS = {"a": 100.0, "b": 40.0, "wild": 100.0}


def rows(num_sessions: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of 20 rows a session, mixed: a and b change in every fifth row, `wild` in each."""
    random = np.random.default_rng(seed)
    names = random.integers(1, 2**63, num_sessions).astype(np.uint64)
    sessions = np.tile(names, 20)
    step = np.repeat(np.arange(20), num_sessions)
    slow = (sessions + np.uint64(1) + (step // 5).astype(np.uint64)).astype(np.uint64)
    return sessions, np.stack([slow, slow * np.uint64(3), random.integers(0, 2**63, len(step)).astype(np.uint64)], 1)


def test_columns_that_change_in_the_same_rows_are_one_group_with_its_factors() -> None:
    sample = GroupSample(["a", "b", "wild"])
    sample.add(*rows(500, 1))
    (group,) = sample.groups(WIDTHS, without=())
    assert group.columns == ("a", "b")
    assert group.factor == pytest.approx(5.0)
    assert group.duplication == pytest.approx(1 - 3 / 19)
    assert group.row_bytes == 140.0
    assert group.saved_bytes == pytest.approx(140 * 0.8 - 4)
    assert group.pays
    assert sample.batch_rows_per_session == pytest.approx(4096 / 500)
    assert 1.0 < group.batch_factor < group.factor


def test_a_sample_of_whole_sessions_gives_the_same_factors_in_bounded_memory() -> None:
    sample = GroupSample(["a", "b", "wild"], max_bytes=200_000)
    for seed in range(5):
        sample.add(*rows(1000, seed))
    assert sum(part[1].nbytes for part in sample._parts) <= 200_000
    (group,) = sample.groups(WIDTHS, without=())
    assert group.factor == pytest.approx(5.0)


def test_columns_that_belong_to_one_row_are_in_no_group() -> None:
    sample = GroupSample(["a", "b", "wild"])
    sample.add(*rows(100, 1))
    (group,) = sample.groups(WIDTHS, without=("a",))
    assert group.columns == ("b",)


def test_an_inspected_log_shows_groups_bytes_and_layout_before_and_after_clustering(tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    from headrace.logs.clustering import ClusterConfig, cluster_log

    log = write_log(tmp_path / "log", {"a.parquet": session_rows(600, 3, rows_per_session=12.0)})
    cluster_log(log, tmp_path / "out", SCHEMA, ClusterConfig(rows_per_group=100))
    before, after = inspect_log(log, schema=SCHEMA), inspect_log(tmp_path / "out", schema=SCHEMA)
    assert before.layout is None
    assert after.layout is not None
    assert after.layout.kind == "nested"
    for name in SCHEMA.columns:
        if name != "session":
            assert after.duplication[name] == pytest.approx(before.duplication[name])
    assert [group.columns for group in after.groups] == [group.columns for group in before.groups]
    assert 0.3 < before.duplicate_bytes_ratio < 1.0
    assert after.num_rows == sum(group.num_rows for group in after.row_groups) == 600
    labels = {"click", "time"}
    assert not labels & {name for group in before.groups for name in group.columns}
