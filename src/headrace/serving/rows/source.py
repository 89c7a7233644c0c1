"""`RowSource`: where a server gets rows from."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from headrace.embeddings.keys import Keys

__all__ = ["RowSource"]

Float32s = npt.NDArray[np.float32]


class RowSource(Protocol):
    """Reads rows of versions. Thread-safe."""

    def read(self, version: int, table_group: str, keys: Keys) -> Float32s:
        """Rows of unique keys at a version, float32 [U, D].

        Raises:
            VersionGone: The version is not, or no longer, there.
            PublishingError: It cannot be reached.
        """
