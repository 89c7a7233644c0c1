"""Admission by count: an id gets a row at a given occurrence (Monolith 2022, section 2.2.1; also HugeCTR and XDL).

With a count of 0 every id has a row, so that ids never trained on read their initial value.
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
    """An `AdmissionPolicy` by count.

    Args:
        counts: For each table, the occurrence at which an id gets its row.
    """

    is_admitted = staticmethod(_is_admitted)

    def __init__(self, counts: Sequence[int]) -> None:
        self.numbers = np.array(counts, dtype=np.int64).reshape(-1, 1)
