"""Rows per session and repeated values, against a plain-Python definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.logs.inspection.hashing import NULL_HASH
from headrace.logs.inspection.session_tracker import SessionTracker


def track(sessions: list[int], values: np.ndarray, *, batch: int = 7, **options: int) -> SessionTracker:
    tracker = SessionTracker(values.shape[1], **options)
    hashes = np.array(sessions, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C13) + np.uint64(1)
    for start in range(0, len(sessions), batch):
        tracker.add(hashes[start : start + batch], values[start : start + batch].astype(np.uint64))
    return tracker


def plain_duplication(sessions: list[int], values: np.ndarray) -> tuple[list[int], int, int]:
    last: dict[int, int] = {}
    repeats, following, returns = [0] * values.shape[1], 0, 0
    for row, session in enumerate(sessions):
        if session in last:
            following += 1
            returns += last[session] != row - 1
            for column in range(values.shape[1]):
                repeats[column] += int(values[last[session], column] == values[row, column])
        last[session] = row
    return repeats, following, returns


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 2), st.integers(0, 5)), min_size=1, max_size=80))
def test_mixed_sessions_are_compared_with_their_own_last_row(rows: list[tuple[int, int, int]]) -> None:
    sessions = [session for session, _, _ in rows]
    values = np.array([row[1:] for row in rows])
    tracker = track(sessions, values)
    repeats, following, returns = plain_duplication(sessions, values)
    assert tracker.num_following == following
    assert tracker.num_returns == returns
    assert tracker.duplication().tolist() == [count / max(1, following) for count in repeats]
    lengths = sorted(sessions.count(session) for session in set(sessions))
    assert tracker.num_sessions == len(lengths)
    assert tracker.max_rows() == lengths[-1]
    assert tracker.mean_rows() == pytest.approx(np.mean(lengths))
    assert tracker.percentile_rows(50) == np.percentile(lengths, 50, method="inverted_cdf")
    assert tracker.percentile_rows(99) == np.percentile(lengths, 99, method="inverted_cdf")
    assert tracker.num_split == 0


def test_contiguous_sessions_need_room_for_few() -> None:
    sessions = np.repeat(np.arange(5_000), 3).tolist()
    values = np.repeat(np.arange(5_000), 3)[:, None] % 97
    tracker = track(sessions, values, batch=1000, max_bytes=1024)
    assert tracker.duplication().tolist() == [1.0]
    assert tracker.num_returns == 0
    assert (tracker.num_sessions, tracker.num_following, tracker.max_rows()) == (5_000, 10_000, 3)
    assert tracker.num_split == 0


def test_sessions_that_come_back_too_late_are_told() -> None:
    sessions = np.tile(np.arange(5_000), 3).tolist()
    tracker = track(sessions, np.zeros((15_000, 1)), batch=1000, max_bytes=1024)
    assert tracker.num_sessions == 5_000
    assert tracker.num_split == 10_000
    assert tracker.num_following == 0


def test_sessions_in_use_stay_while_idle_ones_make_room() -> None:
    sessions = [0 if row % 2 else row for row in range(2, 10_002)]  # session 0 in every other row
    tracker = track(sessions, np.ones((10_000, 1)), batch=1000, max_bytes=1024)
    assert tracker.num_split == 0
    assert (tracker.num_following, tracker.max_rows()) == (4_999, 5_000)


def test_rows_without_a_session_are_left_out() -> None:
    tracker = SessionTracker(1)
    tracker.add(np.array([5, NULL_HASH, 5], dtype=np.uint64), np.array([[1], [2], [1]], dtype=np.uint64))
    assert (tracker.num_rows, tracker.num_following, tracker.num_returns) == (2, 1, 0)
    assert tracker.duplication().tolist() == [1.0]
