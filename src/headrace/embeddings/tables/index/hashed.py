"""Hashed tables: the id is hashed with the table's salt and scaled to the number of rows; ids may share a row."""

import numpy as np

from headrace.compiling import kernel
from headrace.embeddings.ops.hashing import mix64, multiply_shift

__all__ = ["hashed_row"]


@kernel()
def hashed_row(key: int, salt: np.uint64, size: int) -> np.int64:
    """The row of an id, in `[0, size)`; evenly distributed for any set of ids, also for sizes beyond 2^32."""
    return np.int64(multiply_shift(mix64(np.uint64(key) ^ salt), np.uint64(size)))
