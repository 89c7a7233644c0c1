"""Operators on the rows of id lists: first_x, enumerate and sampling."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from headrace.features.kernels import interpret
from headrace.features.operator import FusedOperator, Kind
from headrace.features.program import ProgramBuilder
from headrace.features.registry import register

__all__ = ["Enumerate", "FirstX", "Sampling"]


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
    """Attaches positions: each id becomes its position in its list, counted from 0, or one id for (position, id).

    No public definition exists. With `joined: true` the new id is `hash_128_to_64(position, twang_mix64(id))` of
    folly, cut to 63 bits.
    """

    name: ClassVar[str] = "enumerate"
    takes: ClassVar[tuple[Kind, ...]] = (Kind.ID, Kind.IDS)
    purpose: ClassVar[str] = "ids become their positions in the list, or (`joined: true`) one id for position and id"
    elementwise: ClassVar[bool] = False

    joined: bool = False

    def emit(self, program: ProgramBuilder, kind: Kind) -> None:
        program.add(interpret.ENUMERATE, int(self.joined))


@register
class Sampling(FusedOperator):
    """Keeps a row's value with a probability, else makes it null (a list: empty).

    Which rows is a function of `seed` and the row's id alone: the same in any batch, at any number of workers, in any
    run. Two features with the same seed keep the same rows. To sample whole rows, see
    `headrace.features.RowSampling`.
    """

    name: ClassVar[str] = "sampling"
    shorthand: ClassVar[str | None] = "probability"
    takes: ClassVar[tuple[Kind, ...]] = (Kind.NUMBER, Kind.ID, Kind.IDS)
    purpose: ClassVar[str] = "keeps the values of a share of rows, the same rows in every run; others become null"
    elementwise: ClassVar[bool] = False
    reads_row_ids: ClassVar[bool] = True

    probability: float = Field(ge=0, le=1)
    seed: int = Field(default=0, ge=0, lt=2**63)

    def emit(self, program: ProgramBuilder, kind: Kind) -> None:
        code = interpret.SAMPLE if kind.has_ids else interpret.SAMPLE_NUMBERS
        program.add(code, self.seed, threshold(self.probability))


def threshold(probability: float) -> int:
    """A probability in units of 2^-63, as `kernels.lists.sample` counts it; 1 keeps every row."""
    return min(int(probability * 2**63), 2**63 - 1)
