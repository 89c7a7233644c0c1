"""What a feature operator is: parameters checked once, kinds of columns in and out, and either opcodes or arrays.

Operator
├── FusedOperator    changes one column value by value; runs with its neighbours in one pass over the column
└── ColumnOperator   takes whole columns and returns one; what users write, and what joins several columns
"""

from __future__ import annotations

import enum
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from headrace.config import Config
from headrace.errors import ConfigError
from headrace.features.program import ProgramBuilder
from headrace.logs.schema import Schema
from headrace.messages import shorten_list

__all__ = ["Column", "ColumnOperator", "FusedOperator", "Kind", "Operator"]


class Kind(enum.Enum):
    """What a column holds on its way through a feature."""

    NUMBER = "a number a row"
    NUMBERS = "a list of numbers a row"
    ID = "an id a row"
    IDS = "a list of ids a row"

    @property
    def has_ids(self) -> bool:
        """Whether the values are ids, not numbers."""
        return self in (Kind.ID, Kind.IDS)

    @property
    def is_list(self) -> bool:
        """Whether rows hold lists."""
        return self in (Kind.NUMBERS, Kind.IDS)

    def with_ids(self) -> Kind:
        """The same with ids."""
        return Kind.IDS if self.is_list else Kind.ID

    def with_numbers(self) -> Kind:
        """The same with numbers."""
        return Kind.NUMBERS if self.is_list else Kind.NUMBER


@dataclass(frozen=True)
class Column:
    """A column of B rows between two operators.

    Two rows of ids, the second without any: `values = [7, 8]`, `offsets = [0, 2, 2]`.

    Attributes:
        values: int64 ids, or float64 numbers with NaN for null.
        offsets: int64 [B + 1]: row r holds values[offsets[r]:offsets[r + 1]]. None where each row holds one number;
            columns of ids always have offsets, a single id that is null being an empty row.
    """

    values: NDArray[Any]
    offsets: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.values) if self.offsets is None else len(self.offsets) - 1


class Operator(Config):
    """Base of all operators: a config whose fields are the operator's parameters.

    Class attributes:
        name: What job files call it.
        shorthand: The parameter that `name: value` sets where value is not a mapping.
        takes: Kinds of columns it accepts.
        purpose: One line for the table of operators.
        reads_row_ids: The result depends on more than the row's own values, so equal rows are worked on one by one.
    """

    name: ClassVar[str]
    shorthand: ClassVar[str | None] = None
    takes: ClassVar[tuple[Kind, ...]]
    purpose: ClassVar[str]
    reads_row_ids: ClassVar[bool] = True

    @classmethod
    def from_job(cls, parameters: Any, *, where: str) -> Operator:
        """An operator from what a job file says after its name.

        Raises:
            ConfigError: Names the feature, the operator, the parameter, what was given and what was expected.
        """
        if parameters is None:
            parameters = {}
        elif not isinstance(parameters, dict) or cls._is_one_value(parameters):
            if cls.shorthand is None:
                raise ConfigError(f"{where}: given {parameters!r}, expected {cls._expected()}")
            parameters = {cls.shorthand: parameters}
        return cls.from_dict(parameters, where=where)

    @classmethod
    def _is_one_value(cls, parameters: dict[Any, Any]) -> bool:
        """Whether a mapping is the value of the shorthand parameter itself; only where that is a mapping."""
        return False

    @classmethod
    def _expected(cls) -> str:
        names = shorten_list(cls.model_fields)
        return f"a mapping with the parameters {names}" if names else "no parameters"

    def resolve(self, sources: Sequence[str], schema: Schema) -> Operator:
        """The same operator with parameters taken from the schema where the job left them open.

        Args:
            sources: The feature's source columns.
            schema: Of the logs.

        Raises:
            ConfigError: If such a parameter is left open and the schema does not tell either.
        """
        return self

    @abstractmethod
    def returns(self, kinds: Sequence[Kind]) -> Kind:
        """The kind of the result, for kinds that are all in `takes`.

        Raises:
            ConfigError: If the number of columns or their combination is wrong.
        """


class FusedOperator(Operator):
    """An operator on one column, run block by block together with the ones before and after it.

    Class attributes:
        elementwise: Each value becomes what it becomes wherever in a row it stands, and none is left out but by what
            `drops_ids` says. Then values of lists that overlap are worked on once.
        reads_row_ids: The result depends on the row's id, so rows that are equal must be worked on one by one.
    """

    elementwise: ClassVar[bool] = True
    reads_row_ids: ClassVar[bool] = False

    def returns(self, kinds: Sequence[Kind]) -> Kind:
        return kinds[0]

    @abstractmethod
    def emit(self, program: ProgramBuilder, kind: Kind) -> None:
        """Add its opcodes to a program.

        Args:
            program: Where to.
            kind: What the column holds when it reaches this operator.
        """

    def drops_ids(self, kind: Kind) -> bool:
        """Whether it can leave out some ids of a row; if not, a later `first_x` is done while reading."""
        return False


class ColumnOperator(Operator):
    """An operator on whole columns: joins several, or does what no fused operator does.

    While a feature has several columns, fused operators act on each of them. `returns` never says `Kind.ID`: a result
    with at most one id a row is a list. `apply` runs on many threads at once, so it must not change the operator.

    Class attributes:
        reads_row_ids: The result depends on `row_ids` or on the rows around, so `apply` must see every row. An operator
            that is a function of each row's values alone says False, and equal rows are worked on once.
    """

    reads_row_ids: ClassVar[bool] = True

    @abstractmethod
    def apply(self, columns: Sequence[Column], row_ids: NDArray[np.int64]) -> Column:
        """Compute the result.

        Args:
            columns: The inputs, of the kinds `returns` has accepted, all with B rows.
            row_ids: int64 [B].

        Returns:
            B rows of the kind `returns` has promised.
        """
