"""`SessionTracker`: counts rows per session and values that repeat the session's previous row, in bounded memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.logs.inspection.hashing import NULL_HASH, Hashes
from headrace.logs.inspection.id_counter import MAX_SLOTS, IdCounter

__all__ = ["MAX_BYTES", "SessionTracker"]

WAYS = 8
"""Sessions per hash bucket; the least recently seen one is replaced."""

MAX_BYTES = 64 << 20
MAX_LENGTH = 1 << 16
"""Maximum session length in percentiles (not in the maximum)."""

Counts = npt.NDArray[np.int64]


class SessionTracker:
    """Keeps the last row of each session, whether sessions are contiguous or interleaved.

    It keeps as many sessions as fit into 64 MiB (about 30,000 for 150 columns, 130,000 for 30). A session that returns
    after that many others counts as a new one; `num_split` counts these.
    """

    def __init__(self, num_columns: int, *, max_bytes: int = MAX_BYTES, max_slots: int = MAX_SLOTS) -> None:
        """Compare `num_columns` columns, with a session table of `max_bytes` and an id counter of `max_slots`."""
        sets = max(1, max_bytes // (WAYS * 8 * (num_columns + 3)))
        num_slots = WAYS * (1 << (sets.bit_length() - 1))
        self._sessions = np.zeros(num_slots, dtype=np.uint64)
        self._values = np.zeros((num_slots, num_columns), dtype=np.uint64)
        self._lengths = np.zeros(num_slots, dtype=np.int64)
        self._seen = np.zeros(num_slots, dtype=np.int64)
        self._histogram = np.zeros(MAX_LENGTH + 1, dtype=np.int64)
        self._repeats = np.zeros(num_columns, dtype=np.int64)
        self._state = np.zeros(4, dtype=np.int64)
        self._distinct = IdCounter(max_slots)

    def add(self, sessions: Hashes, values: Hashes) -> None:
        """Add rows in log order.

        Args:
            sessions: [rows], hash of each row's session; rows without one (`NULL_HASH`) are ignored.
            values: [rows, columns], hash of each value.
        """
        self._distinct.add(sessions[sessions != NULL_HASH])
        _track(
            sessions,
            values,
            self._sessions,
            self._values,
            self._lengths,
            self._seen,
            self._histogram,
            self._repeats,
            self._state,
        )

    @property
    def num_sessions(self) -> float:
        """Number of distinct sessions; estimated if there are very many, see `IdCounter`."""
        return self._distinct.num_distinct()

    @property
    def is_exact(self) -> bool:
        """Whether `num_sessions` is exact."""
        return self._distinct.is_exact

    @property
    def num_rows(self) -> int:
        """Number of rows with a session."""
        return self._distinct.num_values

    @property
    def num_following(self) -> int:
        """Number of rows with a previous row in their session."""
        return int(self._state[1])

    @property
    def num_returns(self) -> int:
        """Number of rows whose session was interrupted by another; 0 if sessions are contiguous."""
        return int(self._state[2])

    @property
    def num_split(self) -> int:
        """Number of sessions counted again because they returned too late; approximate if there are very many
        sessions."""
        return max(0, round(float(self._lengths_histogram().sum()) - self.num_sessions))

    def duplication(self) -> npt.NDArray[np.float64]:
        """Share of rows that repeat each column, among rows with a previous row in their session."""
        return self._repeats / max(1, self.num_following)

    def mean_rows(self) -> float:
        """Mean rows per session."""
        return self.num_rows / max(1.0, self.num_sessions)

    def max_rows(self) -> int:
        """Rows of the longest session, or of its longest part if it was split."""
        return int(max(self._state[3], self._lengths.max()))

    def percentile_rows(self, percent: float) -> int:
        """Percentile of rows per session."""
        total = np.cumsum(self._lengths_histogram())
        return int(np.searchsorted(total, percent / 100 * total[-1]))

    def _lengths_histogram(self) -> Counts:
        open_ones = np.minimum(self._lengths[self._lengths > 0], MAX_LENGTH)
        return self._histogram + np.bincount(open_ones, minlength=MAX_LENGTH + 1)


@kernel()
def _track(
    sessions: Hashes,
    values: Hashes,
    table_sessions: Hashes,
    table_values: Hashes,
    lengths: Counts,
    seen: Counts,
    histogram: Counts,
    repeats: Counts,
    state: Counts,
) -> None:
    """Update `state`: [rows, rows with a previous one, returns, longest finished session]."""
    num_sets = np.uint64(len(lengths) // WAYS)
    for row in range(len(sessions)):
        session = sessions[row]
        if session == NULL_HASH:
            continue
        first = int(np.int64(session & (num_sets - np.uint64(1)))) * WAYS
        slot = first
        for candidate in range(first, first + WAYS):
            if lengths[candidate] > 0 and table_sessions[candidate] == session:
                slot = candidate
                break
            if seen[candidate] < seen[slot]:
                slot = candidate
        state[0] += 1
        if lengths[slot] > 0 and table_sessions[slot] == session:
            state[1] += 1
            if seen[slot] != state[0] - 1:
                state[2] += 1
            for column in range(values.shape[1]):
                if table_values[slot, column] == values[row, column]:
                    repeats[column] += 1
            lengths[slot] += 1
        else:
            if lengths[slot] > 0:
                histogram[min(lengths[slot], MAX_LENGTH)] += 1
                state[3] = max(state[3], lengths[slot])
            table_sessions[slot] = session
            lengths[slot] = 1
        seen[slot] = state[0]
        for column in range(values.shape[1]):
            table_values[slot, column] = values[row, column]
