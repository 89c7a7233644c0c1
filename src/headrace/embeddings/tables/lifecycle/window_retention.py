"""Retention by windows: evicts ids not seen for some windows (Monolith 2022, section 2.2.1: expiry by time)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from headrace.embeddings.tables.lifecycle.policies import IdHistory

__all__ = ["WindowRetention"]


class WindowRetention:
    """A `RetentionPolicy` by windows.

    Args:
        windows: For each table, the number of windows that an id is kept without being seen; None for unlimited.
    """

    def __init__(self, windows: Sequence[int | None]) -> None:
        self._windows = [each or 0 for each in windows]
        self.num_windows = max(self._windows, default=0)

    def expired(self, history: IdHistory, window_starts: Sequence[int]) -> npt.NDArray[np.bool_]:
        """See `RetentionPolicy.expired`."""
        # A table keeps the ids seen after the start of its last `windows` windows; versions of ids start at 1.
        oldest = [window_starts[-1 - n] if 0 < n < len(window_starts) else 0 for n in self._windows]
        expired: npt.NDArray[np.bool_] = history.last_seen <= np.array(oldest, dtype=np.int64)[history.tables]
        return expired
