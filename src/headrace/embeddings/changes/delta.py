"""`Delta`: what a checkpoint of a table group needs on top of the previous one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

__all__ = ["SECTIONS", "Columns", "Delta"]

Columns = dict[str, npt.NDArray[Any]]

SECTIONS = ("removed", "rows", "waiting")
"""The parts of a delta that are by key, in the order in which they are applied."""


@dataclass(frozen=True, eq=False)
class Delta:
    """Changes of a table group between two versions, as copies in no particular order.

    To get a state from the earlier one: take out the rows of `removed`; set those of `rows`; set the counts of
    `waiting`; and replace the columns in `whole`.

    Attributes:
        since: The earlier version; 0 for a delta that has everything.
        version: The later version.
        removed: `tables` int32 [E] and `ids` int64 [E] that lost their rows meanwhile; some may have one again.
        rows: `tables` and `ids` [R] of changed rows, and their columns, see `tables.state`; with `rows`, the row
            numbers, if decisions of the group depend on them.
        waiting: `tables` and `ids` [P] of ids that are not admitted yet, `sightings` and `last_seen` int64 [P]; no
            sightings means that an id no longer waits.
        whole: The columns of a saved group that are not by key, among them `header`.
    """

    since: int
    version: int
    removed: Columns
    rows: Columns
    waiting: Columns
    whole: Columns

    def section(self, name: str) -> Columns:
        """One of `SECTIONS`."""
        return {"removed": self.removed, "rows": self.rows, "waiting": self.waiting}[name]
