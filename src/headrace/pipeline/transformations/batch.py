"""`BatchRows`: regroups rows into batches of an exact number of rows.

Memory: a batch is charged the bytes of the rows it was gathered from, because joining slices moves bytes and adds none.
A batch from a single element is a view of it, and keeps that element's memory alive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from headrace.errors import expect
from headrace.logs import groups
from headrace.pipeline.transformations.slices import GrowingSize, Rebatch, RowSlice, same_schema, slices_of
from headrace.pipeline.transformations.transformation import Transformation, expect_count

__all__ = ["BatchRows"]


@dataclass(frozen=True)
class BatchRows(Transformation):
    """Joins the row slices of a batch.

    Attributes:
        size: Rows per batch of one rank; a `GrowingSize` grows with the rows before the batch.
        drop_last: Whether the last, incomplete batch is dropped (its rows count as dropped) or kept.
    """

    size: int | GrowingSize
    drop_last: bool = False

    kind: ClassVar[str] = "batch"

    def __post_init__(self) -> None:
        if not isinstance(self.size, GrowingSize):
            expect_count("batch", "size", self.size, at_least=1)
        expect(self.drop_last, bool, where="batch: drop_last", expected="true or false")

    @property
    def rebatch(self) -> Rebatch:
        return Rebatch(self.size, self.drop_last)

    @property
    def signature(self) -> str:
        return self.kind

    def num_bytes(self, result: Any, num_bytes_in: int) -> int:
        """The bytes of the rows it was gathered from."""
        return num_bytes_in

    def __call__(self, payload: list[RowSlice], seed: tuple[int, ...]) -> pa.RecordBatch:
        slices = slices_of(payload)
        if len(slices) == 1:
            return slices[0]
        same_schema(slices)
        return groups.concat(slices)
