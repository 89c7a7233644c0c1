"""Bad rows: the policy, the error budget, and the checks that split raw batches into good and bad rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, model_validator

from headrace.config import Config
from headrace.errors import ConfigError, DataError, ErrorBudgetExceeded, expect
from headrace.logs.casting import Mask, list_lengths
from headrace.logs.columns import ColumnCheck, column_check, view_check
from headrace.logs.gathering import is_list
from headrace.logs.groups import GROUP_PREFIX, Group, expand, group_array, group_of
from headrace.logs.raw_rows import encode_rows, shown, values_at
from headrace.logs.schema import Schema, is_reserved
from headrace.logs.source import REJECT_SCHEMA, ROW_ID, SourceBatch
from headrace.messages import one_line, shorten_list

__all__ = ["BadRowPolicy", "ErrorBudget", "Problem", "RowChecker", "RowOrigin", "check_names", "columns_asked"]

Problem = tuple[Mask, str, str | Callable[[int], str]]
"""Mask of bad rows of a raw batch, the column, and the reason: one text, or one per row."""


class BadRowPolicy(Config):
    """How to handle rows that violate the schema.

    Attributes:
        policy: "fail" stops at the first bad row; "drop" skips bad rows; "quarantine" skips them and saves them with
            their location and the reason, for inspection and replay.
        max_ratio: Fraction of bad rows above which a job stops; that many bad rows mean a wrong schema.
        min_rows: Number of bad rows below which `max_ratio` is not applied, so that an early one does not stop a job.
        path: Quarantine folder; None for a folder in the run folder.
    """

    policy: Literal["fail", "drop", "quarantine"] = "fail"
    max_ratio: float = Field(default=0.01, ge=0.0, le=1.0)
    min_rows: int = Field(default=100, ge=1)
    path: str | None = None

    @model_validator(mode="after")
    def _limits_need_a_policy_that_goes_on(self) -> Self:
        for key in {"max_ratio", "min_rows"} & self.changed().keys():
            if self.policy == "fail":
                raise ValueError(f"{key} is only for policies drop and quarantine, given policy fail")
        return self


class ErrorBudget:
    """Counts bad rows as batches are delivered, and stops a job with too many.

    Rows are counted at delivery and not when read, so a job stops at the same row regardless of read-ahead.

    Args:
        policy: Policy with the allowed ratio.
        num_read: Rows read so far, for instance according to a checkpoint.
        num_bad: Bad rows among them.
    """

    def __init__(self, policy: BadRowPolicy, *, num_read: int = 0, num_bad: int = 0) -> None:
        self.policy = policy
        self.num_read = num_read
        self.num_bad = num_bad

    def add(self, *, num_read: int, num_bad: int) -> None:
        """Add counts of rows.

        Raises:
            ErrorBudgetExceeded: There are more bad rows than allowed.
        """
        self.num_read += num_read
        self.num_bad += num_bad
        if self.num_bad >= self.policy.min_rows and self.num_bad > self.policy.max_ratio * self.num_read:
            raise ErrorBudgetExceeded(
                f"{self.num_bad:,} of {self.num_read:,} rows are bad ({self.num_bad / self.num_read:.2%}), but at most "
                f"{self.policy.max_ratio:.2%} are allowed (bad_rows.max_ratio); "
                "correct the schema or the logs, or raise max_ratio"
            )


@dataclass(frozen=True)
class RowOrigin:
    """The origin of the rows of a raw batch.

    Attributes:
        file: The file, one for all rows or one per row.
        row_group: The row group, one for all rows or one per row.
        rows: int64, position of each row in its file.
        row_ids: int64, id of each row, if the schema has no row id column.
    """

    file: str | Sequence[str]
    row_group: int | Sequence[int]
    rows: npt.NDArray[np.int64]
    row_ids: npt.NDArray[np.int64]

    def at(self, index: int) -> tuple[str, int, int]:
        """File, row group and row of one row."""
        file = self.file if isinstance(self.file, str) else self.file[index]
        row_group = self.row_group if isinstance(self.row_group, int) else self.row_group[index]
        return file, row_group, int(self.rows[index])


class RowChecker:
    """Splits raw batches into good rows with fixed types, and bad rows with reasons. Thread-safe.

    Args:
        schema: The schema of the log.
        columns: Columns to check and return; other columns are not checked.
        policy: How to handle bad rows.
        stored: Types of the columns in the log (in its first file).
        groups: Features by the group column of the raw batches that holds them, see `headrace.logs.groups`; shared
            values are checked once.

    Attributes:
        inputs: Columns that raw batches must have, plain or in a group: the returned columns and the schema's row id.
        output_schema: Schema of the returned batches: the columns in the order given, group columns in place of their
            first feature, and `ROW_ID`.
    """

    def __init__(
        self,
        schema: Schema,
        columns: Sequence[str],
        policy: BadRowPolicy,
        stored: pa.Schema,
        groups: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        check_names(schema, columns)
        self.inputs = tuple(dict.fromkeys([*columns, *([schema.row_id] if schema.row_id else [])]))
        self._groups = {name: tuple(features) for name, features in (groups or {}).items()}
        self._homes = {feature: name for name, features in self._groups.items() for feature in features}
        checks: dict[str, tuple[pa.DataType, ColumnCheck]] = {}
        for name in self.inputs:
            kind = stored.field(name).type
            in_view = name in self._homes and is_list(kind)
            checks[name] = view_check(schema, name) if in_view else column_check(schema, name, kind)
        self._checks = {name: check for name, (_, check) in checks.items()}
        self._columns = tuple(dict.fromkeys(self._homes.get(name, name) for name in columns))
        self._policy = policy.policy
        self._row_id = schema.row_id
        self._weighted = [
            (column.name, column.weights)
            for column in schema.id_lists
            if column.weights is not None and column.name in checks and column.weights in checks
        ]
        types = {name: kind for name, (kind, _) in checks.items()}
        for name, features in self._groups.items():
            unique = pa.struct([pa.field(feature, types[feature]) for feature in features])
            types[name] = pa.dictionary(pa.int32(), unique)
        fields = [pa.field(name, types[name]) for name in self._columns]
        self.output_schema = pa.schema([*fields, pa.field(ROW_ID, pa.int64())])

    def check(
        self,
        raw: pa.RecordBatch,
        origin: RowOrigin,
        rest_of: Callable[[Mask], Mapping[str, list[Any]]],
        known: Sequence[Problem] = (),
    ) -> SourceBatch:
        """Check a raw batch.

        Args:
            raw: Rows with at least the `inputs`, with grouped features in group columns.
            origin: Origin of the rows.
            rest_of: Returns the columns that were not read, for the rows in a mask, for the quarantine; see
                `headrace.logs.raw_rows.values_at`.
            known: Problems that the reader has found already; their columns must be in `raw`.

        Raises:
            DataError: A row is bad and the policy is "fail".
        """
        problems = list(known)
        values: dict[str, pa.Array] = {}
        groups = {name: group_of(raw.column(name)) for name in self._groups}
        for name, check in self._checks.items():
            home = self._homes.get(name)
            values[name], found = check(raw.column(name) if home is None else groups[home].feature(name))
            problems += [(mask if home is None else mask[groups[home].inverse], name, reason) for mask, reason in found]
        for ids, weights in self._weighted:
            differ = self._lengths(ids, values, groups) != self._lengths(weights, values, groups)
            if differ.any():
                problems.append((differ, weights, f"more or fewer weights than ids in {ids}"))
        for name, group in groups.items():
            values[name] = group_array({feature: values[feature] for feature in self._groups[name]}, group.inverse)
        row_ids = pa.array(origin.row_ids) if self._row_id is None else values[self._row_id]
        good = pa.RecordBatch.from_arrays([*(values[n] for n in self._columns), row_ids], schema=self.output_schema)
        if not problems:
            return SourceBatch(good, raw.num_rows)
        return self._split(raw, origin, rest_of, problems, good)

    def _lengths(self, name: str, values: Mapping[str, pa.Array], groups: Mapping[str, Group]) -> npt.NDArray[np.int64]:
        """int64 [rows], list length of each row."""
        lengths = list_lengths(values[name])
        home = self._homes.get(name)
        return lengths if home is None else lengths[groups[home].inverse]

    def _split(
        self,
        raw: pa.RecordBatch,
        origin: RowOrigin,
        rest_of: Callable[[Mask], Mapping[str, list[Any]]],
        problems: Sequence[Problem],
        good: pa.RecordBatch,
    ) -> SourceBatch:
        first = np.full(raw.num_rows, -1, dtype=np.int32)  # the first problem of each row
        for number, (mask, _, _) in enumerate(problems):
            first[mask & (first < 0)] = number
        bad = first >= 0
        if self._policy == "fail":
            row = int(np.argmax(bad))
            name, reason = _named(problems[first[row]], row)
            file, row_group, position = origin.at(row)
            given = shown(expand(raw.slice(row, 1), [name]).column(0))
            raise DataError(f"{file}, row group {row_group}, row {position}, column {name}: {reason}, given {given}")
        kept = good.filter(pa.array(~bad))
        if self._policy == "drop":
            return SourceBatch(kept, raw.num_rows, num_dropped=int(bad.sum()))
        rows = np.flatnonzero(bad)
        if self._groups:
            raw, rows = expand(raw.take(pa.array(rows))), np.arange(len(rows))
        whole = {**values_at(raw, rows), **rest_of(bad)}
        found = [(*_named(problems[first[row]], row), origin.at(row)) for row in np.flatnonzero(bad).tolist()]
        rejects = {
            "file": [place[0] for _, _, place in found],
            "row_group": [place[1] for _, _, place in found],
            "row": [place[2] for _, _, place in found],
            "column": [name for name, _, _ in found],
            "reason": [reason for _, reason, _ in found],
            "raw": encode_rows(whole, origin.row_ids[bad]),
        }
        return SourceBatch(kept, raw.num_rows, rejects=pa.RecordBatch.from_pydict(rejects, schema=REJECT_SCHEMA))


def _named(problem: Problem, row: int) -> tuple[str, str]:
    """The column of a problem and its reason for one row."""
    _, name, reason = problem
    return name, reason if isinstance(reason, str) else reason(row)


def columns_asked(
    schema: Schema, columns: Sequence[str] | None, policy: BadRowPolicy | None, *, where: str
) -> tuple[str, ...]:
    """Validate the requested columns of a source; None means all columns of the schema.

    Raises:
        ConfigError: An argument has the wrong type, or a column is not in the schema.
    """
    expect(schema, Schema, where=f"{where}: schema", expected="a Schema")
    expect(policy, (BadRowPolicy, type(None)), where=f"{where}: bad_rows", expected="a BadRowPolicy")
    if isinstance(columns, str) or not isinstance(columns, Iterable | None):
        raise ConfigError(f"{where}: columns: given {columns!r}, expected a list of names")
    names = schema.columns if columns is None else tuple(dict.fromkeys(columns))
    check_names(schema, names)
    return names


def check_names(schema: Schema, columns: Sequence[str]) -> None:
    """Check that requested columns are in the schema, and that the schema uses no reserved names.

    Raises:
        ConfigError: A column is unknown or reserved; the message names it.
    """
    reserved = [name for name in schema.columns if is_reserved(name)]
    if reserved:
        raise ConfigError(
            f"schema: {one_line(reserved[0])} is reserved by headrace ({ROW_ID}, {GROUP_PREFIX}...); rename the column"
        )
    known = dict.fromkeys(schema.columns)
    unknown = [name for name in columns if name not in known]
    if unknown:
        raise ConfigError(f"column {shorten_list(unknown)} is not in the schema, which has {shorten_list(known)}")
