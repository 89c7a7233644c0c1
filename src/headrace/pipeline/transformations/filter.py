"""`Filter`: keeps the rows for which a user function or an Arrow expression is true.

Memory: a result is charged its own bytes, at most those of its input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import PipelineError
from headrace.logs import groups
from headrace.pipeline.transformations.transformation import (
    BadRows,
    Transformation,
    call_user_function,
    function_name,
    rng_seed,
)

__all__ = ["Filter"]


@dataclass(frozen=True)
class Filter(Transformation):
    """Keeps the rows for which a user function or an Arrow expression is true; null counts as false.

    The predicate sees plain columns; the remaining rows keep their column groups.

    Attributes:
        predicate: RecordBatch -> booleans, or an Arrow expression.
        seed: Seed of the random numbers, as for `Map`.
        bad_rows: How to handle rows on which the predicate raises.
    """

    predicate: Any
    seed: tuple[int, ...] | None = None
    bad_rows: BadRows = "fail"

    kind: ClassVar[str] = "filter"
    can_use_processes: ClassVar[bool] = True

    @classmethod
    def make(
        cls, predicate: Callable[..., Any] | pc.Expression, *, seed: int, position: int, bad_rows: BadRows
    ) -> Filter:
        """Create the stage for a position in a pipeline; see `rng_seed`."""
        is_expression = isinstance(predicate, pc.Expression)
        return cls(predicate, None if is_expression else rng_seed(cls.kind, predicate, seed, position), bad_rows)

    @property
    def label(self) -> str:
        return "" if isinstance(self.predicate, pc.Expression) else function_name(self.predicate)

    @property
    def signature(self) -> str:
        return self.kind

    def __call__(self, payload: pa.RecordBatch, seed: tuple[int, ...]) -> pa.RecordBatch:
        if isinstance(self.predicate, pc.Expression):
            return _filter_by(self.predicate, payload)
        mask = call_user_function(self.predicate, payload, self.seed, seed)
        if isinstance(mask, pa.ChunkedArray):
            mask = mask.combine_chunks()
        if not isinstance(mask, pa.Array):
            mask = pa.array(np.asarray(mask))
        if not pa.types.is_boolean(mask.type) or len(mask) != payload.num_rows:
            raise PipelineError(
                f"the filter function returned {len(mask)} values of type {mask.type}, "
                f"expected {payload.num_rows} booleans"
            )
        return payload.filter(mask)


def _filter_by(predicate: pc.Expression, rows: pa.RecordBatch) -> pa.RecordBatch:
    if not groups.has_groups(rows.schema):
        return rows.filter(predicate)
    place = "__place"
    plain = groups.expand(rows).append_column(place, pa.array(np.arange(rows.num_rows)))
    return rows.take(plain.filter(predicate).column(place))
