"""Reads text logs with DuckDB as columns of strings: CSV with any separator, and JSON lines."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from headrace.errors import ConfigError, DataError, MissingExtra
from headrace.logs.importers.text_columns import quoted
from headrace.messages import shorten

__all__ = [
    "SKIP",
    "STOP",
    "SUFFIXES",
    "CSVLayout",
    "JSONLayout",
    "Kind",
    "Reject",
    "TextReader",
    "csv_layout",
    "json_layout",
]

Kind = Literal["csv", "jsonl"]

SUFFIXES: dict[Kind, tuple[str, ...]] = {
    "csv": tuple(f"{name}{packed}" for packed in ("", ".gz", ".zst") for name in (".csv", ".tsv", ".txt", ".dat")),
    "jsonl": tuple(f"{name}{packed}" for packed in ("", ".gz", ".zst") for name in (".jsonl", ".ndjson", ".json")),
}
"""File extensions read from a folder, in upper or lower case."""

DELIMITERS = (",", "\t", ";", "|", "::")

NULLS = ("", "NULL", "null", "\\N", "NA", "N/A", "NaN", "nan", "None")
"""Strings that mean a missing value."""

MAX_LINE_BYTES = 4 << 20

MAX_DEPTH = 3
"""Maximum nesting of JSON objects whose values become columns."""

BATCH_ROWS = 16_384

STOP, SKIP = "", "skip"
"""How to handle lines that cannot be split into columns."""

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class CSVLayout:
    """Layout of a CSV file.

    Attributes:
        names: Names of the columns.
        delimiter: Separator of columns.
        has_header: Whether the first line has column names.
    """

    names: tuple[str, ...]
    delimiter: str
    has_header: bool

    def texts(self, name: str) -> str:
        """SQL for the strings of a column; NULL if the file does not have it."""
        return f"x{self.names.index(name)}" if name in self.names else "NULL::VARCHAR"

    def raw(self) -> str:
        """SQL for a row as JSON."""
        return f"to_json({{{', '.join(f'{quoted(name)}: x{n}' for n, name in enumerate(self.names))}}})::VARCHAR"

    def mistake(self) -> str:
        """SQL for the error of a row as a whole; null if there is none."""
        return "NULL"

    def scan(self, path: Path, bad_lines: str) -> str:
        """SQL for the table of a file's rows.

        Args:
            path: Path of the file.
            bad_lines: Name for a table of lines that cannot be split; `STOP` at the first, or `SKIP` them.
        """
        columns = ", ".join(f"'x{n}': 'VARCHAR'" for n in range(len(self.names)))
        return (
            f"read_csv({quoted(str(path))}, columns={{{columns}}}, header={str(self.has_header).lower()}, "
            f"delim={quoted(self.delimiter)}, quote='\"', escape='\"', auto_detect=false, "
            f"nullstr=[{', '.join(map(quoted, NULLS))}], max_line_size={MAX_LINE_BYTES}{_store(bad_lines)})"
        )


@dataclass(frozen=True)
class JSONLayout:
    """Layout of JSON lines.

    Attributes:
        paths: Key path of each column by name.
        lists: Columns that contain arrays.
    """

    paths: dict[str, tuple[str, ...]]
    lists: frozenset[str] = frozenset()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(self.paths)

    def texts(self, name: str) -> str:
        """SQL for the strings of a column."""
        return f"x[{self.names.index(name) + 1}]"

    def raw(self) -> str:
        """SQL for a row as JSON."""
        return "line"

    def mistake(self) -> str:
        """SQL for the error of a row as a whole; null if there is none."""
        return "CASE WHEN kind IS DISTINCT FROM 'OBJECT' THEN 'not a JSON object' END"

    def scan(self, path: Path, bad_lines: str) -> str:
        """SQL for the table of a file's rows; `bad_lines` as for CSV, for lines that are too long or not UTF-8."""
        paths = ", ".join(quoted("$" + "".join(f'."{key}"' for key in keys)) for keys in self.paths.values())
        whole = "CASE WHEN json_valid(line) THEN line END"
        return (
            f"(SELECT line, json_type({whole}) AS kind, json_extract_string({whole}, [{paths}]) AS x "
            f"FROM {_lines(path, bad_lines)} WHERE trim(line) <> '')"
        )


@dataclass(frozen=True)
class Reject:
    """A bad row.

    Attributes:
        row: Number of the row in the file, from 0, without the header.
        column: The bad column; None if the line as a whole is bad.
        reason: The given and the expected value.
        raw: The row as JSON.
    """

    row: int
    column: str | None
    reason: str
    raw: str


@dataclass
class TextReader:
    """A DuckDB connection that reads text logs in bounded memory; a context manager."""

    memory: str = "1GiB"
    connection: Any = field(init=False, default=None)

    def __enter__(self) -> TextReader:
        try:
            import duckdb
        except ImportError as error:
            raise MissingExtra("duckdb", "lake") from error
        self.connection = duckdb.connect(config={"memory_limit": self.memory, "threads": 2})
        self.connection.execute("SET TimeZone = 'UTC'")
        return self

    def __exit__(self, *error: object) -> None:
        self.connection.close()

    def batches(self, query: str, path: Path) -> Iterator[pa.RecordBatch]:
        """Run a query and return its rows in order.

        Raises:
            DataError: A line of the file cannot be split into columns; the text names it.
        """
        import duckdb

        try:
            found = self.connection.sql(query)
            # DuckDB 1 has a different name for it.
            to_reader = found.to_arrow_reader if hasattr(found, "to_arrow_reader") else found.fetch_arrow_reader
            yield from to_reader(BATCH_ROWS)
        except (duckdb.Error, pa.ArrowException) as error:
            raise DataError(f"{path}: {_mistake(str(error))}") from error

    def rows(self, query: str, path: Path) -> list[dict[str, Any]]:
        """The same as plain values, for queries with few rows."""
        return [row for batch in self.batches(query, path) for row in batch.to_pylist()]

    def mistake(self, query: str) -> str | None:
        """The error of a query on one line; None if it is valid."""
        import duckdb

        try:
            self.connection.sql(query).fetchall()
        except duckdb.Error as error:
            return shorten(" ".join(str(error).split()), 300)
        return None

    def rejects(self, table: str, path: Path, *, has_header: bool) -> list[Reject]:
        """Lines that could not be split, in order, once all rows of the file have been read."""
        query = f"SELECT line, error_type, error_message, csv_line FROM {table} ORDER BY line, column_idx"
        found: dict[int, Reject] = {}
        for row in self.rows(query, path):
            reason = _reason(row["error_message"])
            number = int(row["line"]) - 1 - has_header
            found.setdefault(number, Reject(number, None, reason, json.dumps({"line": row["csv_line"]})))
        self.connection.execute(f"DROP TABLE {table}; DROP TABLE {table}_scan")
        return list(found.values())


def csv_layout(path: Path, *, delimiter: str | None, has_header: bool | None, names: Sequence[str] = ()) -> CSVLayout:
    """Determine the layout of a CSV file from its first line, as far as it is not given.

    The separator is the most frequent one of comma, tab, semicolon, bar and two colons. A first line without numbers
    and without empty or duplicate names is a header; without a header, columns are called column1, column2, and so on.
    If names are given there is no header, unless `has_header` is true.

    Raises:
        DataError: The file is empty.
        ConfigError: The header has an empty or duplicate name, or the number of columns differs from the number of
            names.
    """
    line = _first_line(path)
    if not line.strip():
        raise DataError(f"{path}: starts with an empty line, expected column names or values")
    if delimiter is None:
        delimiter = max(DELIMITERS, key=line.count)
    cells = line.rstrip("\r\n").split(delimiter)
    if len(delimiter) == 1:  # names may be quoted
        cells = next(csv.reader(io.StringIO(line), delimiter=delimiter))
    if names:
        if len(names) != len(cells):
            raise ConfigError(f"{path}: given {len(names)} names, expected {len(cells)}, one for each column")
        return CSVLayout(tuple(names), delimiter, bool(has_header))
    names = [cell.strip() for cell in cells]
    whole = all(names) and len({name.lower() for name in names}) == len(names)
    if has_header is None:
        has_header = whole and not any(_NUMBER.fullmatch(name) for name in names)
    elif has_header and not whole:
        raise ConfigError(f"{path}: a name in the header is empty or occurs twice; rename it, or give the names")
    if not has_header:
        names = [f"column{number}" for number in range(1, len(names) + 1)]
    return CSVLayout(tuple(names), delimiter, has_header)


def json_layout(lines: Sequence[str]) -> tuple[JSONLayout, dict[str, str]]:
    """Determine the layout of JSON lines; also returns omitted columns with reasons.

    The values of an object become columns: {"user": {"id": 7}} has a column user_id.

    Args:
        lines: The first lines; keys that occur only later are ignored.
    """
    paths: dict[str, tuple[str, ...]] = {}
    lists: set[str] = set()
    left_out: dict[str, str] = {}

    def look(value: dict[str, Any], above: tuple[str, ...]) -> None:
        for key, item in value.items():
            keys = (*above, key)
            name = "_".join(keys)
            is_plain = '"' not in key and "\\" not in key
            if isinstance(item, dict) and len(keys) < MAX_DEPTH and is_plain:
                look(item, keys)
            elif isinstance(item, dict) or not is_plain or paths.get(name, keys) != keys:
                left_out[name] = "objects inside each other" if isinstance(item, dict) else "its name"
            elif isinstance(item, list) and any(isinstance(element, dict | list) for element in item):
                left_out[name] = "an array of arrays or objects"
            else:
                paths[name] = keys
                lists.update([name] if isinstance(item, list) else [])

    for line in lines:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            look(value, ())
    kept = {name: keys for name, keys in paths.items() if name not in left_out}
    return JSONLayout(kept, frozenset(lists & kept.keys())), left_out


def lines_query(path: Path, limit: int) -> str:
    """SQL for the first lines of a file, as `line`."""
    return f"SELECT line FROM {_lines(path, SKIP)} WHERE trim(line) <> '' LIMIT {limit}"


def _store(bad_lines: str) -> str:
    if bad_lines == STOP:
        return ""
    if bad_lines == SKIP:
        return ", ignore_errors=true"
    return f", store_rejects=true, rejects_table='{bad_lines}', rejects_scan='{bad_lines}_scan'"


def _lines(path: Path, bad_lines: str) -> str:
    return (
        f"read_csv({quoted(str(path))}, columns={{'line': 'VARCHAR'}}, header=false, auto_detect=false, "
        f"delim='\x1f', quote='', escape='', max_line_size={MAX_LINE_BYTES}{_store(bad_lines)})"
    )


def _first_line(path: Path) -> str:
    """The first line of a file, without a UTF-8 byte order mark."""
    if path.suffix.lower() == ".zst":
        with pa.input_stream(str(path), compression="zstd") as stream:
            return bytes(stream.read(MAX_LINE_BYTES)).split(b"\n")[0].decode("utf-8-sig", errors="replace")
    with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as file:
        return file.readline(MAX_LINE_BYTES).decode("utf-8-sig", errors="replace")


def _mistake(text: str) -> str:
    """Line and reason from a DuckDB error."""
    line = re.search(r"CSV Error on Line: ([0-9]+)", text)
    if line is None:
        return f"cannot be read: {shorten(' '.join(text.split()), 300)}"
    return f"line {line[1]}: {_reason(text)}"


def _reason(text: str) -> str:
    columns = re.search(r"Expected Number of Columns: ([0-9]+) Found: ([0-9]+)", text)
    if columns is not None:
        return f"given {columns[2]} columns, expected {columns[1]}"
    known = {
        "unterminated quote": 'a quote " without its end',
        "nicode": "not UTF-8",
        "Maximum line size": f"a line of more than {MAX_LINE_BYTES >> 20} MiB",
    }
    return next((reason for part, reason in known.items() if part in text), "not readable as CSV")
