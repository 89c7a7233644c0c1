"""Admission by count: an id gets a row at a given sighting (Monolith 2022, section 2.2.1; HugeCTR and XDL do the same).

With a count of 0 every id has a row, so that one never trained on reads its first value.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel

__all__ = ["CountAdmission"]

Int64s = npt.NDArray[np.int64]


@kernel()
def _is_admitted(sightings: int, table: int, key: int, numbers: Int64s) -> bool:
    return sightings >= numbers[table, 0]  # type: ignore[no-any-return]


class CountAdmission:
    """See `AdmissionPolicy`.

    Args:
        counts: Of each table, the sighting at which an id gets its row.
    """

    is_admitted = staticmethod(_is_admitted)

    def __init__(self, counts: Sequence[int]) -> None:
        self.numbers = np.array(counts, dtype=np.int64).reshape(-1, 1)
