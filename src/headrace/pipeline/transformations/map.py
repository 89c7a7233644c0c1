"""`Map`: applies a user function to each record batch.

Memory: a result is charged its own bytes. While it runs, the function may hold extra copies, which `engine/headroom.py`
estimates from the growth of the process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from headrace.errors import PipelineError
from headrace.logs.source import ROW_ID
from headrace.pipeline.transformations.transformation import (
    BadRows,
    Transformation,
    call_user_function,
    function_name,
    rng_seed,
)

__all__ = ["Map"]


@dataclass(frozen=True)
class Map(Transformation):
    """Applies a user function to each record batch; column groups are expanded first, so the function sees plain
    columns.

    Attributes:
        function: RecordBatch -> RecordBatch; also receives `rng` if there is a seed.
        seed: Seed of the random numbers, for a function with a parameter `rng`.
        bad_rows: How to handle rows on which the function raises.
    """

    function: Callable[..., Any]
    seed: tuple[int, ...] | None = None
    bad_rows: BadRows = "fail"

    kind: ClassVar[str] = "map"
    can_use_processes: ClassVar[bool] = True

    @classmethod
    def make(cls, function: Callable[..., Any], *, seed: int, position: int, bad_rows: BadRows) -> Map:
        """Create the stage for a position in a pipeline; see `rng_seed`."""
        return cls(function, rng_seed(cls.kind, function, seed, position), bad_rows)

    @property
    def label(self) -> str:
        return function_name(self.function)

    @property
    def signature(self) -> str:
        return self.kind

    def __call__(self, payload: pa.RecordBatch, seed: tuple[int, ...]) -> pa.RecordBatch:
        return _record_batch(call_user_function(self.function, payload, self.seed, seed))


def _record_batch(value: Any) -> pa.RecordBatch:
    if isinstance(value, pa.Table):
        value = pa.concat_batches(value.to_batches()) if value.num_rows else _empty(value.schema)
    if not isinstance(value, pa.RecordBatch):
        raise PipelineError(f"the function returned {type(value).__name__}, expected pyarrow.RecordBatch")
    if ROW_ID not in value.schema.names:
        raise PipelineError(f"the function dropped the column {ROW_ID}, which identifies rows; keep it")
    return value


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)
