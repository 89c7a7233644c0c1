"""Base classes of feature operators: validated parameters, kinds of input and output columns, and opcodes or arrays.

Operator
├── FusedOperator    works on one column value by value; runs with its neighbours in one pass over the column
└── ColumnOperator   takes whole columns and returns one; for user-defined operators and operators that join columns
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
    """The kind of values in a column."""

    NUMBER = "one number per row"
    NUMBERS = "a list of numbers per row"
    ID = "one id per row"
    IDS = "a list of ids per row"

    @property
    def has_ids(self) -> bool:
        """Whether the values are ids rather than numbers."""
        return self in (Kind.ID, Kind.IDS)

    @property
    def is_list(self) -> bool:
        """Whether rows hold lists."""
        return self in (Kind.NUMBERS, Kind.IDS)

    def with_ids(self) -> Kind:
        """The same shape with ids."""
        return Kind.IDS if self.is_list else Kind.ID

    def with_numbers(self) -> Kind:
        """The same shape with numbers."""
        return Kind.NUMBERS if self.is_list else Kind.NUMBER


@dataclass(frozen=True)
class Column:
    """A column of B rows between two operators.

    For example, two rows of ids, the second one empty: `values = [7, 8]`, `offsets = [0, 2, 2]`.

    Attributes:
        values: int64 ids, or float64 numbers with NaN for null.
        offsets: int64 [B + 1]: row r holds values[offsets[r]:offsets[r + 1]]. None if each row holds one number.
            Columns of ids always have offsets; a null id is an empty row.
    """

    values: NDArray[Any]
    offsets: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.values) if self.offsets is None else len(self.offsets) - 1


class Operator(Config):
    """Base of all operators: a config whose fields are the operator's parameters.

    Class attributes:
        name: Name in job files.
        shorthand: The parameter that `name: value` sets if value is not a mapping.
        takes: Kinds of columns it accepts.
        purpose: Description for the table of operators.
        reads_row_ids: Whether the result depends on more than the row's own values, so that equal rows must be computed
            separately.
    """

    name: ClassVar[str]
    shorthand: ClassVar[str | None] = None
    takes: ClassVar[tuple[Kind, ...]]
    purpose: ClassVar[str]
    reads_row_ids: ClassVar[bool] = True

    @classmethod
    def from_job(cls, parameters: Any, *, where: str) -> Operator:
        """Create an operator from the value after its name in a job file.

        Raises:
            ConfigError: A parameter is invalid; names the feature, operator and parameter, the given and the expected
                value.
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
        """Whether a mapping is the value of the shorthand parameter, for parameters that are mappings."""
        return False

    @classmethod
    def _expected(cls) -> str:
        names = shorten_list(cls.model_fields)
        return f"a mapping with the parameters {names}" if names else "no parameters"

    def resolve(self, sources: Sequence[str], schema: Schema) -> Operator:
        """Fill in parameters that the job leaves out and the schema defines.

        Args:
            sources: The feature's source columns.
            schema: Schema of the logs.

        Raises:
            ConfigError: A required parameter is neither in the job nor in the schema.
        """
        return self

    @abstractmethod
    def returns(self, kinds: Sequence[Kind]) -> Kind:
        """The kind of the result, for kinds that are all in `takes`.

        Raises:
            ConfigError: The number of columns or their combination is wrong.
        """


class FusedOperator(Operator):
    """An operator on one column, run block by block together with the ones before and after it.

    Class attributes:
        elementwise: Whether each result depends only on its own value, not on its position in a row, and ids are
            dropped only as `drops_ids` says. Then values shared by overlapping lists are computed once.
        reads_row_ids: Whether the result depends on the row's id, so that equal rows must be computed separately.
    """

    elementwise: ClassVar[bool] = True
    reads_row_ids: ClassVar[bool] = False

    def returns(self, kinds: Sequence[Kind]) -> Kind:
        return kinds[0]

    @abstractmethod
    def emit(self, program: ProgramBuilder, kind: Kind) -> None:
        """Add the operator's opcodes to a program.

        Args:
            program: The program.
            kind: Kind of the operator's input.
        """

    def drops_ids(self, kind: Kind) -> bool:
        """Whether the operator can drop ids; if not, a later `first_x` is applied while reading."""
        return False


class ColumnOperator(Operator):
    """An operator on whole columns, for joins of several columns and for user-defined operators.

    While a feature has several columns, fused operators apply to each of them. `returns` must not be `Kind.ID`: a
    result with at most one id per row is a list. `apply` runs on many threads at once, so it must not modify the
    operator.

    Class attributes:
        reads_row_ids: Whether the result depends on `row_ids` or on other rows, so that `apply` must see every row. If
            False, the operator is a function of each row's values alone, and equal rows are computed once.
    """

    reads_row_ids: ClassVar[bool] = True

    @abstractmethod
    def apply(self, columns: Sequence[Column], row_ids: NDArray[np.int64]) -> Column:
        """Compute the result.

        Args:
            columns: The inputs, of kinds that `returns` accepted, all with B rows.
            row_ids: int64 [B].

        Returns:
            B rows of the kind that `returns` gave.
        """
