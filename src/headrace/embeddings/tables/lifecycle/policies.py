"""What policies of a row's life are: admission says when an id gets a row, retention when it loses it.

Policies decide for all tables of a group at once, and see nothing but what is kept of each id, which does not depend on
where its row lies. So shards decide alike, however many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["AdmissionPolicy", "IdHistory", "RetentionPolicy"]


class AdmissionPolicy(Protocol):
    """When ids of collisionless tables get a row, as a rule that compiled loops over ids call.

    Attributes:
        is_admitted: A kernel of (sightings so far, table, id, numbers) that says whether the id has a row from now on.
            It may not turn from true to false as sightings grow.
        numbers: int64 [T, N], what the rule needs to know of each table.
    """

    is_admitted: Callable[..., bool]
    numbers: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class IdHistory:
    """What is kept of some ids [R] of collisionless tables, with or without a row.

    Attributes:
        tables: int32 [R].
        ids: int64 [R].
        last_seen: int64 [R], the version of the table group that saw each last.
        sightings: int64 [R], how often each was seen.
    """

    tables: npt.NDArray[np.int32]
    ids: npt.NDArray[np.int64]
    last_seen: npt.NDArray[np.int64]
    sightings: npt.NDArray[np.int64]


class RetentionPolicy(Protocol):
    """Which ids are forgotten, with their rows.

    Attributes:
        num_windows: Windows back that it looks.
    """

    num_windows: int

    def expired(self, history: IdHistory, window_starts: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Which ids to forget, bool [R].

        Args:
            history: Of all ids.
            window_starts: Versions at which windows began, the latest last, as far back as the policies of the group
                look.
        """
