"""Choosing a layout: what changes together, what belongs to the session or the impression, which way lists grow."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from headrace.logs.nested.choose import choose_layout


def sessions_of(num_sessions: int, rows_each: int) -> np.ndarray:
    return np.tile([True] + [False] * (rows_each - 1), num_sessions)


def stepping(changes: np.ndarray, is_new: np.ndarray) -> np.ndarray:
    """A number that changes where told to, and from session to session."""
    return np.cumsum(changes | is_new)


@pytest.fixture
def sample() -> tuple[pa.RecordBatch, np.ndarray]:
    random = np.random.default_rng(3)
    is_new = sessions_of(200, 20)
    n = len(is_new)
    one, other = random.random(n) < 0.1, random.random(n) < 0.1
    wide = [[int(v) * 7 + i for i in range(30)] for v in stepping(one, is_new)]
    newest_last = [list(range(int(v), int(v) + 30)) for v in stepping(other, is_new) + 31 * np.cumsum(is_new)]
    columns = {
        "session": np.cumsum(is_new),
        "user": np.cumsum(is_new) % 50,
        "a": stepping(one, is_new),
        "b": stepping(one, is_new) * 3.5,
        "wide": pa.array(wide),
        "history": pa.array(newest_last),
        "feed": pa.array([values[::-1] for values in newest_last]),
        "item": random.integers(0, 1000, n),
        "click": random.integers(0, 2, n),
    }
    return pa.RecordBatch.from_pydict(columns), is_new


def test_columns_find_their_place(sample: tuple[pa.RecordBatch, np.ndarray]) -> None:
    layout = choose_layout("nested", *sample, session="session", apart=["click"])
    assert layout.session_columns == ("session", "user")
    assert {runs.columns for runs in layout.runs} == {("a", "b", "wide"), ("history", "feed")}
    assert layout.impression_columns == ("item", "click")
    assert layout.newest_first == ("feed",)
    assert layout.rows_per_session == 20.0


def test_the_measured_factor_is_rows_per_run(sample: tuple[pa.RecordBatch, np.ndarray]) -> None:
    rows, is_new = sample
    layout = choose_layout("nested", rows, is_new, session="session", apart=["click"])
    steps = np.diff(rows.column("a").to_numpy()) != 0
    expected = rows.num_rows / (1 + steps.sum())
    assert next(runs for runs in layout.runs if "a" in runs.columns).rows_per_run == pytest.approx(expected)


def test_labels_times_and_ids_stay_with_their_row(sample: tuple[pa.RecordBatch, np.ndarray]) -> None:
    layout = choose_layout("nested", *sample, session="session", apart=["click", "user", "a"])
    assert set(layout.impression_columns) == {"user", "a", "item", "click"}


def test_without_repetition_nothing_is_grouped() -> None:
    rows = pa.RecordBatch.from_pydict({"session": np.arange(100), "x": np.arange(100.0), "click": np.zeros(100)})
    layout = choose_layout("nested", rows, np.ones(100, bool), session="session", apart=["click"])
    assert layout.runs == ()
    assert layout.session_columns == ("session",)
    assert layout.impression_columns == ("x", "click")


def test_narrow_columns_that_change_apart_share_a_group_only_where_that_saves_bytes() -> None:
    random = np.random.default_rng(5)
    is_new = sessions_of(300, 15)
    columns = {"session": np.cumsum(is_new), "click": np.zeros(len(is_new))}
    for ratio, name in ((0.02, "calm"), (0.03, "quiet"), (0.45, "wild")):
        steps = stepping(random.random(len(is_new)) < ratio, is_new)
        columns[name] = pa.array([[int(v)] * 20 for v in steps])
    rows = pa.RecordBatch.from_pydict(columns)
    layout = choose_layout("nested", rows, is_new, session="session", apart=["click"])
    assert {runs.columns for runs in layout.runs} == {("calm",), ("quiet",), ("wild",)}
    narrow = rows.set_column(2, "calm", pa.array(stepping(random.random(len(is_new)) < 0.02, is_new), pa.int32()))
    narrow = narrow.set_column(3, "quiet", pa.array(stepping(random.random(len(is_new)) < 0.02, is_new), pa.int32()))
    layout = choose_layout("nested", narrow, is_new, session="session", apart=["click"])
    assert {runs.columns for runs in layout.runs} == {("calm", "quiet"), ("wild",)}
