"""Sessions: geometric lengths, inside their window, interleaved by time, in order within themselves."""

import numpy as np
import pytest

from headrace.logs.generate import GenerateConfig
from headrace.logs.generate.sessions import lay_out_sessions


def lay_out(window: int = 0, **values: object):
    config = GenerateConfig.from_dict({"rows": 100_000, "windows": 1, **values}, where="test")
    return config, lay_out_sessions(config, window, np.uint64(11 + window))


def test_lengths_are_geometric_with_the_mean_asked_for() -> None:
    _, sessions = lay_out(rows_per_session=5.0)
    lengths = np.bincount(sessions.session)[:-1]  # the last one is cut short
    assert lengths.mean() == pytest.approx(5.0, rel=0.03)
    assert lengths.std() == pytest.approx(np.sqrt(1 - 1 / 5) * 5, rel=0.05)
    assert (lengths == 1).mean() == pytest.approx(1 / 5, abs=0.015)


def test_one_row_per_session_is_possible() -> None:
    _, sessions = lay_out(rows_per_session=1, rows=1000)
    assert len(sessions.keys) == 1000


@pytest.mark.parametrize("gap_seconds", [0.0, 30.0, 100_000.0])
def test_rows_are_in_order_of_time_and_inside_their_window(gap_seconds: float) -> None:
    config, sessions = lay_out(window=3, row_gap_seconds=gap_seconds, windows=4, window_seconds=60)
    start = config.start_ms + 3 * 60_000
    assert (np.diff(sessions.time_ms) >= 0).all()
    assert start <= sessions.time_ms[0]
    assert sessions.time_ms[-1] < start + 60_000


def test_rows_of_a_session_keep_their_order() -> None:
    _, sessions = lay_out(row_gap_seconds=0.0)
    order = np.argsort(sessions.session, kind="stable")
    session, position = sessions.session[order], sessions.position[order]
    same = session[1:] == session[:-1]
    assert (np.diff(position)[same] == 1).all()
    assert (position[1:][~same] == 0).all()


def test_sessions_are_interleaved() -> None:
    _, sessions = lay_out()
    assert (np.diff(sessions.session) != 0).mean() > 0.9


def test_gaps_have_the_mean_asked_for() -> None:
    _, sessions = lay_out(row_gap_seconds=2.0, window_seconds=36_000)
    order = np.argsort(sessions.session, kind="stable")
    same = np.diff(sessions.session[order]) == 0
    assert np.diff(sessions.time_ms[order])[same].mean() == pytest.approx(2000, rel=0.03)


def test_rows_of_a_session_may_lie_anywhere_in_the_window() -> None:
    config, sessions = lay_out(rows_per_session=16.5, session_spread="window", rows=20_000)
    assert (np.diff(sessions.time_ms) >= 0).all()
    spans = [np.ptp(sessions.time_ms[sessions.session == s]) for s in range(200)]
    assert np.mean(spans) > 0.5 * config.window_seconds * 1000
    for s in range(50):
        assert (np.diff(sessions.position[sessions.session == s]) == 1).all()
