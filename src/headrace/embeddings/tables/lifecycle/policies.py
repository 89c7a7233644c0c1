"""Interfaces of admission policies, which decide when an id gets a row, and retention policies, when it loses it.

Policies decide for all tables of a group at once, from metadata of ids that does not depend on row numbers. So
decisions are the same for any number of shards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["AdmissionPolicy", "IdHistory", "RetentionPolicy"]


class AdmissionPolicy(Protocol):
    """Decides when ids of collisionless tables get a row, as a function that compiled loops call.

    Attributes:
        is_admitted: A kernel of (count so far, table, id, numbers) that returns whether the id is admitted. It must be
            monotone in the count.
        numbers: int64 [T, N], parameters of the rule for each table.
    """

    is_admitted: Callable[..., bool]
    numbers: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class IdHistory:
    """Metadata of some ids [R] of collisionless tables, with or without a row.

    Attributes:
        tables: int32 [R], table of each id.
        ids: int64 [R].
        last_seen: int64 [R], version of the table group when each id was last seen.
        sightings: int64 [R], number of occurrences of each id.
    """

    tables: npt.NDArray[np.int32]
    ids: npt.NDArray[np.int64]
    last_seen: npt.NDArray[np.int64]
    sightings: npt.NDArray[np.int64]


class RetentionPolicy(Protocol):
    """Decides which ids are evicted, with their rows.

    Attributes:
        num_windows: Number of recent windows that the policy uses.
    """

    num_windows: int

    def expired(self, history: IdHistory, window_starts: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Whether to evict each id, bool [R].

        Args:
            history: Metadata of all ids.
            window_starts: Start versions of the recent windows, in order, as many as the policies of the group use.
        """
