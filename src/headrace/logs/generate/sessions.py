"""Generates the times and sessions of a window's rows: user visits, interleaved by time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.logs.generate.spec import GenerateConfig
from headrace.logs.keyed_random import derive, uniform

__all__ = ["WindowSessions", "lay_out_sessions"]

_LENGTH, _START, _GAP = 1, 2, 3


@dataclass(frozen=True)
class WindowSessions:
    """The rows of one window in time order, before features are generated.

    Attributes:
        session: i64[rows], number of the session within the window.
        position: i64[rows], number of the row within its session.
        time_ms: i64[rows], non-decreasing; rows of a session are in order of position.
        keys: u64[sessions], random keys of the sessions.
    """

    session: npt.NDArray[np.int64]
    position: npt.NDArray[np.int64]
    time_ms: npt.NDArray[np.int64]
    keys: npt.NDArray[np.uint64]


def lay_out_sessions(config: GenerateConfig, window: int, window_key: np.uint64) -> WindowSessions:
    """Fill a window with sessions, truncating the last one, and sort their rows by time."""
    rows = config.window_rows(window)
    session, position = np.empty(rows, np.int64), np.empty(rows, np.int64)
    time_ms = np.empty(rows, np.int64)
    keys = np.empty(rows, np.uint64)
    start_ms = config.start_ms + window * config.window_seconds * 1000
    num_sessions = _fill(
        window_key,
        config.rows_per_session,
        config.row_gap_seconds * 1000.0,
        config.session_spread == "window",
        start_ms,
        config.window_seconds * 1000,
        session,
        position,
        time_ms,
        keys,
    )
    order = np.argsort(time_ms, kind="stable")
    return WindowSessions(session[order], position[order], time_ms[order], keys[:num_sessions].copy())


@kernel()
def _fill(
    window_key: np.uint64,
    mean_rows: float,
    mean_gap_ms: float,
    anywhere: bool,
    start_ms: int,
    window_ms: int,
    session: npt.NDArray[np.int64],
    position: npt.NDArray[np.int64],
    time_ms: npt.NDArray[np.int64],
    keys: npt.NDArray[np.uint64],
) -> int:
    """Generate consecutive sessions; returns their number."""
    rows = len(session)
    row, num_sessions = 0, 0
    while row < rows:
        key = derive(window_key, num_sessions)
        keys[num_sessions] = key
        length = 1
        if mean_rows > 1.0:  # geometric on 1, 2, ... by inverse transform sampling
            u = 1.0 - uniform(derive(key, _LENGTH))
            length += int(np.floor(np.log(u) / np.log(1.0 - 1.0 / mean_rows)))
        length = min(length, rows - row)
        if anywhere:
            for j in range(length):
                session[row + j], position[row + j] = num_sessions, j
                time_ms[row + j] = start_ms + np.int64(uniform(derive(derive(key, _GAP), j)) * window_ms)
            time_ms[row : row + length].sort()
            row += length
            num_sessions += 1
            continue
        at = 0.0
        for j in range(length):
            if j > 0:
                gap = -np.log(1.0 - uniform(derive(derive(key, _GAP), j))) * mean_gap_ms
                at += max(1.0, np.floor(gap))
            session[row + j] = num_sessions
            position[row + j] = j
            time_ms[row + j] = np.int64(at)
        # A session stays inside its window. Compressed times keep their order; ties are broken by position.
        squeeze = 1.0 if at < window_ms else (window_ms - 1.0) / at
        begin = start_ms + np.int64(uniform(derive(key, _START)) * (window_ms - at * squeeze))
        for j in range(length):
            time_ms[row + j] = begin + np.int64(time_ms[row + j] * squeeze)
        row += length
        num_sessions += 1
    return num_sessions
