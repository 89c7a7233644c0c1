"""Operators on lists, and sampling of one feature's values or of whole rows."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from headrace.compiling import kernel
from headrace.config import Config
from headrace.errors import DataError
from headrace.features.kernels import interpret
from headrace.features.kernels.ids import sample
from headrace.features.operator import FusedOperator, Kind
from headrace.features.program import ProgramBuilder
from headrace.features.registry import register
from headrace.logs.source import ROW_ID
from headrace.messages import shorten_list

__all__ = ["Enumerate", "FirstX", "RowSampling", "Sampling"]


@register
class FirstX(FusedOperator):
    """The first `count` elements of each list; nulls are skipped in a list of ids, counted in a list of numbers."""

    name: ClassVar[str] = "first_x"
    shorthand: ClassVar[str | None] = "count"
    takes: ClassVar[tuple[Kind, ...]] = (Kind.NUMBERS, Kind.IDS)
    purpose: ClassVar[str] = "the first `count` elements of each list"
    elementwise: ClassVar[bool] = False

    count: int = Field(ge=1)

    def emit(self, program: ProgramBuilder, kind: Kind) -> None:
        program.add(interpret.FIRST_X, self.count)


@register
class Enumerate(FusedOperator):
    """Replaces each id with its position in its list, counted from 0, or with one id for (position, id).

    There is no public definition. With `joined: true` the new id is `hash_128_to_64(position, twang_mix64(id))` of
    folly, truncated to 63 bits.
    """

    name: ClassVar[str] = "enumerate"
    takes: ClassVar[tuple[Kind, ...]] = (Kind.ID, Kind.IDS)
    purpose: ClassVar[str] = "replaces ids with list positions, or (`joined: true`) with one id for position and id"
    elementwise: ClassVar[bool] = False

    joined: bool = False

    def emit(self, program: ProgramBuilder, kind: Kind) -> None:
        program.add(interpret.ENUMERATE, int(self.joined))


@register
class Sampling(FusedOperator):
    """Keeps a row's value with a given probability, else makes it null (or an empty list).

    The choice depends only on `seed` and the row's id: it is the same in any batch, with any number of workers, in any
    run. Two features with the same seed keep the same rows. To sample whole rows, see `headrace.features.RowSampling`.
    """

    name: ClassVar[str] = "sampling"
    shorthand: ClassVar[str | None] = "probability"
    takes: ClassVar[tuple[Kind, ...]] = (Kind.NUMBER, Kind.ID, Kind.IDS)
    purpose: ClassVar[str] = "keeps the values of a fraction of rows, the same in every run; other values become null"
    elementwise: ClassVar[bool] = False
    reads_row_ids: ClassVar[bool] = True

    probability: float = Field(ge=0, le=1)
    seed: int = Field(default=0, ge=0, lt=2**63)

    def emit(self, program: ProgramBuilder, kind: Kind) -> None:
        code = interpret.SAMPLE if kind.has_ids else interpret.SAMPLE_NUMBERS
        program.add(code, self.seed, threshold(self.probability))


class RowSampling(Config):
    """Keeps each row with a given probability, and optionally all rows with a positive label.

    A predicate for `Pipeline.filter`. The choice depends only on the seed and the row id, so it is the same in every
    run. If you train on a sample of the negatives, weight them by 1 / probability to get calibrated scores.

    Attributes:
        probability: Probability of keeping a row.
        seed: Seed of the choice.
        keep_label: A label column; rows where it is above 0 are always kept.
    """

    probability: float = Field(ge=0, le=1)
    seed: int = Field(default=0, ge=0, lt=2**63)
    keep_label: str | None = None

    def __call__(self, batch: pa.RecordBatch) -> pa.Array:
        """Which rows to keep, as booleans.

        Raises:
            DataError: The row id or the label is missing.
        """
        for name in (ROW_ID, self.keep_label):
            if name is not None and name not in batch.schema.names:
                raise DataError(f"column {name}: missing in the batch, which has {shorten_list(batch.schema.names)}")
        row_ids = batch.column(ROW_ID).to_numpy(zero_copy_only=False)
        keep = np.empty(batch.num_rows, np.bool_)
        _sample_rows(row_ids, self.seed, threshold(self.probability), keep)
        if self.keep_label is not None:
            keep |= batch.column(self.keep_label).to_numpy(zero_copy_only=False) > 0
        return pa.array(keep)


@kernel()
def _sample_rows(row_ids: NDArray[np.int64], seed: int, limit: int, keep: NDArray[np.bool_]) -> None:
    for row in range(row_ids.size):
        keep[row] = sample(row_ids[row], seed, limit)


def threshold(probability: float) -> int:
    """A probability in units of 2^-63, as `kernels.ids.sample` counts it; 1 keeps every row."""
    return min(int(probability * 2**63), 2**63 - 1)
