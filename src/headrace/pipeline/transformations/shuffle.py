"""Orders of the rows of a shuffle block: each row by itself, or whole sessions, whose rows stay together in order."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

__all__ = ["row_order", "session_order"]


def row_order(num_rows: int, seed: tuple[int, ...]) -> NDArray[np.int64]:
    """Positions of rows in a random order."""
    return np.random.default_rng(seed).permutation(num_rows)


def session_order(sessions: pa.Array, seed: tuple[int, ...]) -> NDArray[np.int64]:
    """Positions of rows, sessions in a random order, the rows of each side by side as they stood.

    Args:
        sessions: The session of each row; missing ones count as one session.
        seed: Of the order; the same sessions in the same order give the same result.
    """
    while pa.types.is_dictionary(sessions.type):
        sessions = sessions.dictionary_decode()
    encoded = pc.dictionary_encode(sessions, null_encoding="encode")
    numbers = encoded.indices.to_numpy(zero_copy_only=False)
    place = np.random.default_rng(seed).permutation(len(encoded.dictionary))
    return np.argsort(place[numbers], kind="stable")
