"""`KeyStates`: all that a table group knows of some keys, to move them from one group to another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["KeyStates"]

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class KeyStates:
    """The rows of some keys [K], and the counts of keys that wait for one.

    A key that is in neither part was never trained on, or was evicted; its state is a function of (seed, table, id).

    Attributes:
        places: int64 [R], positions of the keys that have a row, ascending.
        columns: `weights` [R, dim] as stored, `slot.NAME` float32 [R, width], `version` int64 [R], `frequency`
            int32 [R].
        waiting: int64 [P], positions of the keys that were seen, but not often enough for a row.
        sightings: int64 [P], how often each was seen.
        last_seen: int64 [P], version of the group when each was last seen.
    """

    places: Int64s
    columns: dict[str, npt.NDArray[Any]]
    waiting: Int64s
    sightings: Int64s
    last_seen: Int64s

    def take(self, where: Int64s, num_keys: int) -> KeyStates:
        """The states of the keys at some positions [U] out of `num_keys`."""
        new_places = np.full(num_keys, -1, dtype=np.int64)
        new_places[where] = np.arange(len(where))
        rows, waiting = new_places[self.places], new_places[self.waiting]
        row_order = np.argsort(rows, kind="stable")[np.count_nonzero(rows < 0) :]
        waiting_order = np.argsort(waiting, kind="stable")[np.count_nonzero(waiting < 0) :]
        return KeyStates(
            rows[row_order],
            {name: column[row_order] for name, column in self.columns.items()},
            waiting[waiting_order],
            self.sightings[waiting_order],
            self.last_seen[waiting_order],
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of the arrays without the positions."""
        return sum(each.nbytes for each in (*self.columns.values(), self.sightings, self.last_seen))
