"""Operators on numbers: fill, is_null, clamp, standardize, log1p, box_cox, logit, bucketize, one_hot, and cast between
numbers and ids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, model_validator

from headrace.errors import ConfigError
from headrace.features.kernels import interpret
from headrace.features.kernels.buckets import ordered_bits
from headrace.features.operator import FusedOperator, Kind
from headrace.features.program import ProgramBuilder
from headrace.features.registry import register

__all__ = [
    "BoxCox",
    "Bucketize",
    "Cast",
    "Clamp",
    "Fill",
    "IsNull",
    "Log1p",
    "Logit",
    "OneHot",
    "Standardize",
    "bucket_table",
]

NUMBERS = (Kind.NUMBER, Kind.NUMBERS)
ANY = tuple(Kind)

_MIN_CELLS, _MAX_CELLS = 4, 16  # cells per border; more would outgrow the first-level cache without a benefit
_FULL_TABLE = 1 << 14  # cells, 64 KiB

_INT64 = (-(2**63), 2**63 - 1)


@register
class Fill(FusedOperator):
    """Replaces null and NaN with a value; a row without an id gets this id.

    In a list of numbers, null elements are replaced. A list of ids has no nulls once it is read.
    """

    name: ClassVar[str] = "fill"
    shorthand: ClassVar[str | None] = "value"
    takes: ClassVar[tuple[Kind, ...]] = (Kind.NUMBER, Kind.NUMBERS, Kind.ID)
    purpose: ClassVar[str] = "replaces null and NaN with a value"

    value: FiniteFloat

    def emit(self, program: ProgramBuilder, kind: Kind) -> None:
        if kind is Kind.ID:
            program.add(interpret.FILL_IDS, int(self.value))
        else:
            program.add(interpret.FILL, floats=[self.value])

    def returns(self, kinds: Sequence[Kind]) -> Kind:
        if kinds[0] is Kind.ID and not self.value.is_integer():
            raise ConfigError(f"value: given {self.value}, expected: an integer, because the column holds ids")
        return kinds[0]


@register
class IsNull(FusedOperator):
    """1 for null and NaN, else 0: a feature that tells a missing number from 0.

    For a column of ids, 1 in rows without an id.
    """

    name: ClassVar[str] = "is_null"
    takes: ClassVar[tuple[Kind, ...]] = (Kind.NUMBER, Kind.NUMBERS, Kind.ID)
    purpose: ClassVar[str] = "1 for null and NaN, else 0"

    def returns(self, kinds: Sequence[Kind]) -> Kind:
        return kinds[0].with_numbers()

    def emit(self, program: ProgramBuilder, kind: Kind) -> None:
        if kind is Kind.ID:
            program.add(interpret.TO_NUMBER)
        program.add(interpret.IS_NULL)


@register
class Clamp(FusedOperator):
    """Clamps values to [min, max]; null stays null."""

    name: ClassVar[str] = "clamp"
    takes: ClassVar[tuple[Kind, ...]] = ANY
    purpose: ClassVar[str] = "clamps values to [`min`, `max`]"

    min: float = -math.inf
    max: float = math.inf

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.min <= self.max:
            raise ValueError(f"min <= max, given min {self.min} and max {self.max}")
        return self

    def emit(self, program: ProgramBuilder, kind: Kind) -> None:
        if kind.has_ids:
            low = _INT64[0] if self.min <= _INT64[0] else math.ceil(self.min)
            high = _INT64[1] if self.max >= _INT64[1] else math.floor(self.max)
            program.add(interpret.CLAMP_IDS, low, high)
        else:
            program.add(interpret.CLAMP, floats=[self.min, self.max])


@register
class Standardize(FusedOperator):
    """(x - mean) / std, with constants from the job file, so that a row has the same value in every run; null stays
    null, which is the mean in `Batch.dense`.
    """

    name: ClassVar[str] = "standardize"
    takes: ClassVar[tuple[Kind, ...]] = NUMBERS
    purpose: ClassVar[str] = "(x - `mean`) / `std`"

    mean: FiniteFloat = 0.0
    std: Annotated[FiniteFloat, Field(gt=0)]

    def emit(self, program: ProgramBuilder, kind: Kind) -> None:
        program.add(interpret.STANDARDIZE, floats=[self.mean, self.std])


@register
class Log1p(FusedOperator):
    """sign(x) log(1 + |x|), which for x >= 0 is log(1 + x); with `signed: false` null below -1.

    Computed in float32, within 2 units in the last place.
    """

    name: ClassVar[str] = "log1p"
    takes: ClassVar[tuple[Kind, ...]] = NUMBERS
    purpose: ClassVar[str] = "sign(x) log(1 + |x|)"

    signed: bool = True

    def emit(self, program: ProgramBuilder, kind: Kind) -> None:
        program.add(interpret.LOG1P, int(self.signed))


@register
class BoxCox(FusedOperator):
    """(x^lambda - 1) / lambda, or log(x) for lambda 0 (Box and Cox, 1964); null where the result is not a number."""

    name: ClassVar[str] = "box_cox"
    shorthand: ClassVar[str | None] = "lambda"
    takes: ClassVar[tuple[Kind, ...]] = NUMBERS
    purpose: ClassVar[str] = "(x^lambda - 1) / lambda, or log(x) for lambda 0"

    power: FiniteFloat = Field(alias="lambda")

    def emit(self, program: ProgramBuilder, kind: Kind) -> None:
        program.add(interpret.BOX_COX, floats=[self.power])


@register
class Logit(FusedOperator):
    """log(p / (1 - p)) of a probability clamped to [epsilon, 1 - epsilon]."""

    name: ClassVar[str] = "logit"
    shorthand: ClassVar[str | None] = "epsilon"
    takes: ClassVar[tuple[Kind, ...]] = NUMBERS
    purpose: ClassVar[str] = "log(p / (1 - p)), with p clamped to [epsilon, 1 - epsilon]"

    epsilon: float = Field(default=1e-6, gt=0, lt=0.5)

    def emit(self, program: ProgramBuilder, kind: Kind) -> None:
        program.add(interpret.LOGIT, floats=[self.epsilon])


@register
class Bucketize(FusedOperator):
    """The number of borders below a value (0..number of borders); null has no bucket.

    As torcharrow's `bucketize`: bucket i holds borders[i - 1] < x <= borders[i]. A repeated border makes a separate
    bucket for values equal to it.
    """

    name: ClassVar[str] = "bucketize"
    shorthand: ClassVar[str | None] = "borders"
    takes: ClassVar[tuple[Kind, ...]] = NUMBERS
    purpose: ClassVar[str] = "maps a number to the id of its bucket: the number of borders below it"

    borders: Annotated[tuple[FiniteFloat, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _sorted(self) -> Self:
        borders = self.borders
        for at in range(1, len(borders)):
            if borders[at] < borders[at - 1]:
                raise ValueError(f"borders in ascending order, given {borders[at - 1]} before {borders[at]}")
            if at > 1 and borders[at] == borders[at - 2]:
                raise ValueError(f"no border more than twice, given {borders[at]} three times")
        return self

    def returns(self, kinds: Sequence[Kind]) -> Kind:
        return kinds[0].with_ids()

    def emit(self, program: ProgramBuilder, kind: Kind) -> None:
        borders, starts, low, scale, steps = bucket_table(self.borders)
        cells = np.append(starts, starts[-1:]) if len(starts) % 2 else starts
        floats = np.concatenate([[low, scale], borders])
        program.add(interpret.BUCKETIZE, steps, len(starts), floats=floats, table=cells.view(np.int64))


@register
class OneHot(FusedOperator):
    """One dense column per bucket, with 1 in the value's bucket; allowed only as the last operator.

    The buckets are those of `bucketize`, so there is one more column than there are borders, named
    `feature_0`, `feature_1`, ... Null is zero everywhere.
    """

    name: ClassVar[str] = "one_hot"
    shorthand: ClassVar[str | None] = "borders"
    takes: ClassVar[tuple[Kind, ...]] = (Kind.NUMBER,)
    purpose: ClassVar[str] = (
        "one dense column per bucket, with 1 in the value's bucket; last operator of a dense feature"
    )

    borders: Annotated[tuple[FiniteFloat, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _sorted(self) -> Self:
        Bucketize(borders=self.borders)
        return self

    @property
    def num_columns(self) -> int:
        """Number of dense columns."""
        return len(self.borders) + 1

    def emit(self, program: ProgramBuilder, kind: Kind) -> None:
        Bucketize(borders=self.borders).emit(program, kind)
        program.add(interpret.TO_NUMBER)


@register
class Cast(FusedOperator):
    """Converts numbers to ids, truncated towards zero (values outside int64 become null), or ids to numbers."""

    name: ClassVar[str] = "cast"
    shorthand: ClassVar[str | None] = "to"
    takes: ClassVar[tuple[Kind, ...]] = ANY
    purpose: ClassVar[str] = "converts numbers to ids (`id`, truncated towards zero) or ids to numbers (`number`)"

    to: Literal["id", "number"]

    def returns(self, kinds: Sequence[Kind]) -> Kind:
        if kinds[0] is Kind.IDS and self.to == "number":
            raise ConfigError("to: given 'number', expected: 'id', because rows hold lists of ids")
        return kinds[0].with_ids() if self.to == "id" else kinds[0].with_numbers()

    def emit(self, program: ProgramBuilder, kind: Kind) -> None:
        if self.to == "id" and not kind.has_ids:
            program.add(interpret.TO_ID)
        elif self.to == "number" and kind.has_ids:
            program.add(interpret.TO_NUMBER)


def bucket_table(
    borders: Sequence[float],
) -> tuple[NDArray[np.float64], NDArray[np.int32], float, float, int]:
    """Compute the arguments of `kernels.buckets.bucketize`: borders, starts, low, scale and steps.

    Cells have equal width or equal ratio (for borders that are quantiles of long-tailed numbers), whichever leaves
    fewer borders in the fullest cell.
    """
    distinct = np.array(borders, dtype=np.float64) + 0.0  # makes -0.0 positive
    # Repeated borders: move the first of the two just below, so that only the border's own value is between them.
    twice = np.flatnonzero(distinct[1:] == distinct[:-1])
    distinct[twice] = np.nextafter(distinct[twice], -np.inf)
    scale, cells = min(
        (_equal_width(distinct), _equal_ratio(distinct)), key=lambda choice: int(np.bincount(choice[1]).max())
    )
    counts = np.bincount(cells)
    starts = np.cumsum(counts) - counts
    steps = int(counts.max()).bit_length()
    padded = np.concatenate([distinct, np.full(1 << steps, np.nan)])
    return padded, starts.astype(np.int32), float(distinct[0]), scale, steps


def _equal_width(borders: NDArray[np.float64]) -> tuple[float, NDArray[np.int64]]:
    """Cells per unit, and the cell of each border."""
    width = float(borders[-1]) - float(borders[0])
    num_cells = _num_cells(borders)
    scale = (num_cells - 1) / width if width > 0 else 0.0
    if not (math.isfinite(width) and math.isfinite(scale)):
        return 0.0, np.zeros(len(borders), np.int64)
    return scale, ((borders - borders[0]) * scale).astype(np.int64)


def _equal_ratio(borders: NDArray[np.float64]) -> tuple[float, NDArray[np.int64]]:
    """Minus the shift that makes cells of ordered bits, and the cell of each border."""
    bits = [int(ordered_bits(border)) for border in borders]
    span = bits[-1] - bits[0]
    if span >= 2**62:
        return 0.0, np.zeros(len(borders), np.int64)
    shift = max(1, (span // _num_cells(borders)).bit_length())
    return -float(shift), np.array([(number - bits[0]) >> shift for number in bits], np.int64)


def _num_cells(borders: NDArray[np.float64]) -> int:
    """Number of cells that leaves few borders in each, within `_FULL_TABLE` if that allows `_MIN_CELLS` per border."""
    return min(_MAX_CELLS * len(borders), max(_MIN_CELLS * len(borders), _FULL_TABLE))
