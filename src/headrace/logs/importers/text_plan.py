"""Plans the import of text logs: the layout of each file, and the types of columns."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from headrace.config import Config
from headrace.errors import ConfigError, DataError
from headrace.logs.files import LogFile
from headrace.logs.importers.text_columns import JSON, TextColumn, guess_column
from headrace.logs.importers.text_columns import Kind as ColumnKind
from headrace.logs.importers.text_files import (
    SKIP,
    CSVLayout,
    JSONLayout,
    Kind,
    TextReader,
    csv_layout,
    json_layout,
    lines_query,
)
from headrace.messages import shorten_list

__all__ = ["LABEL", "TextConfig", "TextPlan", "plan_import"]

SAMPLE_ROWS = 20_000
"""Rows from the start of a file used to guess types, which takes a second for 40 columns."""

SAMPLE_FILES = 5
"""Number of files used to guess types, spread over all files."""

LIST_ROWS = 1_000
"""Rows used to detect lists in strings."""

LABEL = "label"
"""Column for the value of `TextConfig.label`."""


class TextConfig(Config):
    """How to read CSV files or JSON lines."""

    delimiter: str | None = Field(default=None, min_length=1, max_length=4)
    """Separator of CSV columns; None for the most frequent one of comma, tab, semicolon, bar and two colons."""
    header: bool | None = None
    """Whether the first line of CSV contains column names; None to detect it."""
    names: tuple[str, ...] = ()
    """Names of CSV columns, for files without a header."""
    types: dict[str, ColumnKind] = Field(default_factory=dict)
    """Types of some columns, instead of guessed ones."""
    lists: dict[str, str] = Field(default_factory=dict)
    """Separators of list elements in some columns, instead of guessed ones; "" for no list."""
    label: str | None = None
    """SQL condition on the columns, such as "rating >= 4". Its value is written to the column `label` as 0 or 1. Its
    columns are omitted, because they determine the label."""
    bad_lines: Literal["fail", "drop", "quarantine"] = "fail"
    """"fail" at the first bad line, "drop" bad lines, or "quarantine" them next to the output."""
    rows_per_file: int | None = Field(default=None, ge=1)
    """Maximum rows per file; None for a Parquet file per input file."""


@dataclass
class TextPlan:
    """Plan for reading text logs.

    Attributes:
        layouts: Layout of each file by path.
        columns: Columns of all files.
        label: Condition for the label, see `TextConfig`.
        notes: Lines for the user on guesses and omitted columns.
    """

    layouts: dict[str, CSVLayout | JSONLayout] = field(default_factory=dict)
    columns: tuple[TextColumn, ...] = ()
    label: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return [column.name for column in self.columns]

    @property
    def in_label(self) -> list[str]:
        """Columns in the condition of the label."""
        return _columns_in(self.label, self.names)

    @property
    def schema(self) -> pa.Schema:
        """Schema of the Parquet files."""
        fields = [pa.field(column.name, column.type) for column in self.columns if column.name not in self.in_label]
        return pa.schema(fields if self.label is None else [*fields, pa.field(LABEL, pa.int8())])


def plan_import(kind: Kind, reader: TextReader, files: Sequence[LogFile], config: TextConfig) -> TextPlan:
    """Make a plan from the first lines of some files.

    Raises:
        ConfigError: An option does not match the columns.
        DataError: A file cannot be parsed.
    """
    plan = TextPlan(label=config.label)
    step = max(1, -(-len(files) // SAMPLE_FILES))
    sampled = [Path(file.path) for file in files[::step]]
    if kind == "csv":
        _look_at_csv(plan, files, config)
    else:
        _look_at_json(
            plan, files, [row["line"] for path in sampled for row in reader.rows(lines_query(path, SAMPLE_ROWS), path)]
        )
    wanted = list(dict.fromkeys(name for layout in plan.layouts.values() for name in layout.names))
    for option, given in (("types", config.types), ("lists", config.lists)):
        unknown = [name for name in given if name not in wanted]
        if unknown:
            raise ConfigError(f"{option}: given {unknown[0]}, expected one of the columns: {shorten_list(wanted)}")
    if config.label is not None and LABEL in wanted:
        raise ConfigError(f"label: given {config.label!r}, but there is a column {LABEL} already")
    plan.columns = tuple(_chosen(column, config) for column in _guess(reader, sampled, plan.layouts, wanted))
    plan.notes += [
        f"{column.name}: lists of {column.kind}, split at {column.separator!r}"
        for column in plan.columns
        if column.separator not in ("", JSON)
    ]
    if config.label is not None:
        _check_label(plan, config.label, reader)
        used = f"; left out {shorten_list(plan.in_label)}, which tells it" if plan.in_label else ""
        plan.notes.append(f"{LABEL}: {config.label}{used}")
    return plan


def _check_label(plan: TextPlan, label: str, reader: TextReader) -> None:
    """Check that a condition is valid SQL on the columns, before reading."""
    columns = ", ".join(
        f'NULL::{column.sql_type} AS "{column.name}"' for column in plan.columns if column.name in label
    )
    mistake = reader.mistake(f"SELECT ({label})::BOOLEAN FROM (SELECT {columns or '1'})")
    if mistake is not None:
        what = mistake.partition(" LINE 1")[0]
        raise ConfigError(f"label: given {label!r}, expected a condition on {shorten_list(plan.names)}: {what}")


def _look_at_csv(plan: TextPlan, files: Sequence[LogFile], config: TextConfig) -> None:
    given: dict[str, Any] = {"delimiter": config.delimiter, "has_header": config.header, "names": config.names}
    layouts = {file.path: csv_layout(Path(file.path), **given) for file in files}
    plan.layouts |= layouts
    first = layouts[files[0].path]
    names = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars", "::": "two colons"}
    header = "names in the first line" if first.has_header else "no header: columns are called column1, column2, ..."
    header = "names as given" if config.names else header
    plan.notes.append(f"columns separated by {names.get(first.delimiter, repr(first.delimiter))}, {header}")


def _look_at_json(plan: TextPlan, files: Sequence[LogFile], lines: Sequence[str]) -> None:
    layout, left_out = json_layout(lines)
    if not layout.paths:
        raise DataError(f"{files[0].path}: no JSON objects with values in the first lines, expected one per line")
    plan.layouts |= dict.fromkeys([file.path for file in files], layout)
    plan.notes += [f"left out {name}: {reason}" for name, reason in left_out.items()]


def _guess(
    reader: TextReader, files: Sequence[Path], layouts: dict[str, CSVLayout | JSONLayout], names: Sequence[str]
) -> Iterator[TextColumn]:
    """Guess the type of each column from the first rows of some files."""
    kinds: tuple[ColumnKind, ...] = ("integer", "unsigned", "number", "boolean", "time")
    counts: dict[str, dict[str, int]] = {name: dict.fromkeys(("all", *kinds), 0) for name in names}
    texts: dict[str, list[str]] = {name: [] for name in names}
    for path in files:
        layout = layouts[str(path)]
        first = ", ".join(f"{layout.texts(name)} AS t{n}" for n, name in enumerate(names))
        # Lines that cannot be split into columns are skipped here, and reported when rows are read.
        sample = f"FROM (SELECT {first} FROM {layout.scan(path, SKIP)} LIMIT {SAMPLE_ROWS})"
        fits = [
            f"count(t{n}) AS all{n}, "
            + ", ".join(
                f"count(*) FILTER (WHERE {TextColumn(name, kind).fits(f't{n}')}) AS {kind}{n}" for kind in kinds
            )
            for n, name in enumerate(names)
        ]
        (found,) = reader.rows(f"SELECT {', '.join(fits)} {sample}", path)
        rows = reader.rows(f"SELECT * {sample} LIMIT {LIST_ROWS}", path)
        for n, name in enumerate(names):
            for kind in counts[name]:
                counts[name][kind] += found[f"{kind}{n}"]
            texts[name] += [row[f"t{n}"] for row in rows if row[f"t{n}"] is not None]
    some = layouts[str(files[0])]
    lists = some.lists if isinstance(some, JSONLayout) else frozenset()
    for name in names:
        total = counts[name].pop("all")
        shares: dict[Any, float] = {kind: count / total for kind, count in counts[name].items()} if total else {}
        yield guess_column(name, texts[name], shares, is_json_list=name in lists)


def _chosen(guess: TextColumn, config: TextConfig) -> TextColumn:
    """A column as guessed or as configured."""
    name = guess.name
    kind = config.types.get(name, guess.kind)
    separator = config.lists.get(name, guess.separator)
    is_list = kind in ("integers", "numbers", "texts")
    if name in config.lists and not separator:
        return TextColumn(name, kind if name in config.types and not is_list else "text")
    if name in config.lists and not is_list:
        if name in config.types:
            raise ConfigError(f"types: given {name}={kind}, but lists splits it; expected integers, numbers or texts")
        return TextColumn(name, "texts", separator)
    if is_list and not separator:
        raise ConfigError(f"types: given {name}={kind}, a list, but no separator was found; give it as --list {name}=|")
    return TextColumn(name, kind, separator if is_list else "")


def _columns_in(expression: str | None, names: Sequence[str]) -> list[str]:
    """Columns named in an SQL expression."""
    words = {a or b for a, b in re.findall(r'"([^"]+)"|(\w+)', expression or "")}
    return [name for name in names if name in words]
