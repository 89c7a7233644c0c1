"""`Schema`: the schema of an interaction log, which assigns a role to each column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from headrace.config import Config
from headrace.logs.groups import GROUP_PREFIX
from headrace.logs.source import ROW_ID
from headrace.messages import shorten_list

__all__ = ["DenseColumn", "IdColumn", "IdListColumn", "LabelColumn", "Schema", "TimestampColumn", "is_reserved"]


class LabelColumn(Config):
    """A training target; rows with a null or a value that is not allowed are bad.

    With `allowed: null`, a row with a null label is used only for its other labels.
    """

    name: str
    """Column name."""
    allowed: tuple[float, ...] | None = (0.0, 1.0)
    """Allowed values; None for any finite number."""
    kind: Literal["binary", "regression"] | None = None
    """binary: a model predicts a probability, with log loss. regression: it predicts the number, with squared error.
    None is binary if all allowed values are from 0 to 1, else regression."""

    @property
    def is_regression(self) -> bool:
        """Whether models predict the number itself."""
        if self.kind is not None:
            return self.kind == "regression"
        return self.allowed is None or not all(0.0 <= value <= 1.0 for value in self.allowed)

    @model_validator(mode="after")
    def _a_binary_label_is_from_0_to_1(self) -> Self:
        outside = [value for value in self.allowed or () if not 0.0 <= value <= 1.0]
        if self.kind == "binary" and outside:
            raise ValueError(f"kind: binary allows values from 0 to 1, given {outside[0]:g} in allowed")
        return self


class DenseColumn(Config):
    """A number per row; the feature plan handles nulls."""

    name: str
    """Column name."""
    nan: Literal["allow", "forbid"] = "forbid"
    """Whether NaN and infinity make a row bad ("forbid") or count as null ("allow")."""


class IdColumn(Config):
    """One id per row: an integer or a string; null means no id."""

    name: str
    """Column name."""
    type: Literal["int", "string"] = "int"
    """Type of ids."""


class IdListColumn(Config):
    """A list of ids per row: integers or strings; null means an empty list."""

    name: str
    """Column name."""
    type: Literal["int", "string"] = "int"
    """Type of ids."""
    max_length: int | None = Field(default=None, ge=0)
    """Maximum list length; longer lists make a row bad. None for no limit."""
    weights: str | None = None
    """List column of weights, one number per id."""


class TimestampColumn(Config):
    """Time of the interaction; a row without it is bad."""

    name: str
    """Column name."""
    unit: Literal["s", "ms", "us", "ns"] = "ms"
    """Unit of an integer column, counted from 1970-01-01 UTC; Arrow timestamp columns have their own unit."""


def is_reserved(name: str) -> bool:
    """Whether a column name is reserved for batches."""
    return name == ROW_ID or name.startswith(GROUP_PREFIX)


def _short_form(value: object) -> object:
    """Allow a column without options to be given by its name."""
    return {"name": value} if isinstance(value, str) else value


Short = BeforeValidator(_short_form)


class Schema(Config):
    """Assigns a role to each column of a log; columns that it does not name are never read.

    As YAML, a column without options is just its name::

        version: 1
        labels: [click]
        dense: [age, price]
        ids: [user, item, {name: country, type: string}]
        id_lists:
        - {name: history, max_length: 500}
        timestamp: {name: time, unit: ms}
        session_id: session

    Attributes:
        version: Version of this format, 1.
        labels: Training targets, at least one.
        dense: Number columns.
        ids: Columns with one id per row.
        id_lists: Columns with a list of ids per row.
        weight: Column with the example weight (a finite number >= 0).
        timestamp: Column with the time of the interaction.
        session_id: Column with the session id.
        row_id: Unique int64 column; without it a row is identified by its file and position.
    """

    version: Literal[1] = 1
    labels: tuple[Annotated[LabelColumn, Short], ...] = Field(min_length=1)
    dense: tuple[Annotated[DenseColumn, Short], ...] = ()
    ids: tuple[Annotated[IdColumn, Short], ...] = ()
    id_lists: tuple[Annotated[IdListColumn, Short], ...] = ()
    weight: str | None = None
    timestamp: Annotated[TimestampColumn, Short] | None = None
    session_id: str | None = None
    row_id: str | None = None

    @model_validator(mode="after")
    def _features_have_different_names(self) -> Self:
        counts = Counter(column.name for column in self._parts())
        twice = sorted(name for name, count in counts.items() if count > 1)
        if twice:
            raise ValueError(f"each column can have only one role, given twice: {shorten_list(twice)}")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """Distinct names of all columns of the schema."""
        extra = [c.weights for c in self.id_lists] + [self.weight, self.session_id, self.row_id]
        names = [column.name for column in self._parts()] + [name for name in extra if name is not None]
        return tuple(dict.fromkeys(names))

    def _parts(self) -> Iterator[Any]:
        yield from self.labels
        yield from self.dense
        yield from self.ids
        yield from self.id_lists
        if self.timestamp is not None:
            yield self.timestamp
