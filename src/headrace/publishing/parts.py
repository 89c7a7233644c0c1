"""`Part`: which rows of a model a replica has in memory, if one machine cannot have all of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from headrace.embeddings.config import TableConfig
from headrace.embeddings.shards.plan import PlanKind, ShardingPlan, make_plan
from headrace.errors import ConfigError

__all__ = ["WHOLE", "Part"]

MAX_PARTS = 4096

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Part:
    """One of several parts of the keys of every table group; nobody has to know more than these three values.

    Attributes:
        number: Number of the part, from 0.
        count: Number of parts.
        kind: `row_wise` divides the ids of each table by a hash; `table_wise` keeps tables together where parts stay
            balanced, see `make_plan`.
    """

    number: int = 0
    count: int = 1
    kind: PlanKind = "row_wise"

    @classmethod
    def of(cls, text: str, kind: PlanKind = "row_wise") -> Part:
        """Read `2/4`, the second of four parts.

        Raises:
            ConfigError: The text means something else.
        """
        found = re.fullmatch(r"([0-9]{1,5})/([0-9]{1,5})", text.strip())
        number, count = (int(found[1]), int(found[2])) if found else (0, 0)
        if not 1 <= number <= count <= MAX_PARTS:
            raise ConfigError(f"--part: given {text[:40]!r}, expected K/N with 1 <= K <= N <= {MAX_PARTS}, such as 2/4")
        return cls(number - 1, count, kind)

    def __str__(self) -> str:
        return f"{self.number + 1}/{self.count}"

    def plan(self, names: Sequence[str], num_embeddings: Sequence[int]) -> ShardingPlan:
        """Which part has which keys of a table group: the same in all parts and in all clients."""
        return _plan(tuple(names), tuple(num_embeddings), self.count, self.kind)

    def mask(self, plan: ShardingPlan, tables: Int32s, ids: Int64s) -> npt.NDArray[np.bool_]:
        """Which rows belong to this part, bool [R]; rows of tables that no key names, such as shared ones, to all."""
        tables, ids = np.ascontiguousarray(tables, np.int32), np.ascontiguousarray(ids, np.int64)
        is_named = tables < len(plan.owners)
        found: npt.NDArray[np.bool_] = plan.owners_of(np.where(is_named, tables, np.int32(0)), ids) == self.number
        return found | ~is_named


WHOLE = Part()
"""All rows."""


@lru_cache(maxsize=256)
def _plan(names: tuple[str, ...], num_embeddings: tuple[int, ...], count: int, kind: PlanKind) -> ShardingPlan:
    tables = [TableConfig(name=name, num_embeddings=rows) for name, rows in zip(names, num_embeddings, strict=True)]
    return make_plan(tables, count, kind=kind)
