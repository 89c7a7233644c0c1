"""Column types of text logs (numbers, times, lists in strings): guessed from samples, and converted with SQL.

Text logs are read as columns of strings. The first rows decide the type of each column: the first of the kinds below
that matches at least 99 % of its values. Any other value is then an error of its row, so a single stray value does not
turn a column of numbers into strings.

| kind | values | in Parquet |
|---|---|---|
| integer | `-12` | int64 |
| unsigned | integers beyond 2^63 | uint64 |
| number | `0.5`, `-1e3`; integers of more digits than a float holds are texts | double |
| boolean | `true`, `false` | bool |
| time | `2024-01-31`, `2024-01-31 12:00:00`, `2024-01-31T12:00:00+01:00`; UTC unless it says otherwise | timestamp |
| integers, numbers, texts | a list: `3|7|12`, or `[3, 7, 12]` in JSON | list |
| text | anything else | string |
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import pyarrow as pa

__all__ = ["KINDS", "Kind", "TextColumn", "guess_column"]

Kind = Literal["integer", "unsigned", "number", "boolean", "time", "integers", "numbers", "texts", "text"]
KINDS: tuple[Kind, ...] = get_args(Kind)

MIN_FIT = 0.99
"""Minimum share of values that match a kind; the others are errors."""

MIN_LISTS = 0.1
"""Minimum share of strings with a separator for a column of lists."""

JSON = "json"
"""Separator value for lists that are JSON arrays."""

_INTEGER = r"[+-]?[0-9]{1,19}"
_NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
_LONG = r"[+-]?[0-9]{17,}"
_TIME = r"[0-9]{4}[-/][0-9]{1,2}[-/][0-9]{1,2}([ T][0-9:.]+ ?(Z|UTC|[+-][0-9:]+)?)?"

_WORD = re.compile(r"[\w.:+/-]+")
_CODE = re.compile(r"[A-Za-z]{0,3}-?[0-9]+")

SEPARATORS = {"|": re.compile(r"\S(.*\S)?"), ";": _WORD, ",": _WORD, "^": _WORD, " ": _CODE}
"""Separators of lists, and patterns of elements, because titles and addresses also contain these characters."""

_ARROW: dict[Kind, pa.DataType] = {
    "integer": pa.int64(),
    "unsigned": pa.uint64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
    "time": pa.timestamp("us", tz="UTC"),
    "integers": pa.list_(pa.int64()),
    "numbers": pa.list_(pa.float64()),
    "texts": pa.list_(pa.string()),
    "text": pa.string(),
}
_SQL: dict[Kind, str] = {
    "integer": "BIGINT",
    "unsigned": "UBIGINT",
    "number": "DOUBLE",
    "boolean": "BOOLEAN",
    "time": "TIMESTAMPTZ",
    "integers": "BIGINT[]",
    "numbers": "DOUBLE[]",
    "texts": "VARCHAR[]",
    "text": "VARCHAR",
}


@dataclass(frozen=True)
class TextColumn:
    """A column of a text log.

    Attributes:
        name: Name of the column.
        kind: Kind of its values.
        separator: Separator of list elements; "json" for JSON arrays.
    """

    name: str
    kind: Kind
    separator: str = ""

    @property
    def type(self) -> pa.DataType:
        """Type in Parquet."""
        return _ARROW[self.kind]

    @property
    def sql_type(self) -> str:
        """Type in DuckDB."""
        return _SQL[self.kind]

    @property
    def expected(self) -> str:
        """The expected value, for errors."""
        lists = {"integers": "integers", "numbers": "numbers", "texts": "texts"}
        if self.kind in lists:
            between = "a JSON array of" if self.separator == JSON else f"a list, separated by {self.separator!r}, of"
            return f"{between} {lists[self.kind]}"
        what = {"integer": "an integer", "unsigned": "an integer from 0 to 2^64 - 1", "number": "a number"}
        return what.get(self.kind, "true or false" if self.kind == "boolean" else "a time such as 2024-01-31 12:00:00")

    def fits(self, text: str) -> str:
        """SQL for whether a string is a value of this kind; `text` is SQL and not null."""
        if self.kind == "text" or (self.kind == "texts" and self.separator != JSON):
            return "true"
        if self.kind == "time":
            return f"regexp_full_match(trim({text}), {quoted(_TIME)}) AND {self.value(text)} IS NOT NULL"
        if self.kind == "boolean":
            return f"lower({text}) IN ('true', 'false')"
        if self.kind == "texts":
            return f"{self.value(text)} IS NOT NULL"
        item = _NUMBER if self.kind.startswith("number") else _INTEGER
        if self.kind in ("integers", "numbers"):
            between = ", ?" if self.separator == JSON else re.escape(self.separator)
            items = f"({item}({between}{item})*)?"
            items = rf"\[ ?{items} ?\]" if self.separator == JSON else items
            return f"regexp_full_match({self._trimmed(text)}, {quoted(items)}) AND {self.value(text)} IS NOT NULL"
        fits = f"regexp_full_match(trim({text}), {quoted(item)}) AND {self.value(text)} IS NOT NULL"
        return f"{fits} AND NOT regexp_full_match(trim({text}), {quoted(_LONG)})" if self.kind == "number" else fits

    def _trimmed(self, text: str) -> str:
        """SQL for a string without leading and trailing separators."""
        return text if self.separator == JSON else f"trim({text}, {quoted(self.separator)})"

    def value(self, text: str) -> str:
        """SQL for the value of a string; null if it does not match."""
        if self.kind == "text":
            return text
        if self.kind == "texts" and self.separator == JSON:
            return f"CASE WHEN json_valid({text}) THEN from_json({text}, '[\"VARCHAR\"]') END"
        if self.kind.endswith("s") and self.separator != JSON:
            text = f"string_split({self._trimmed(text)}, {quoted(self.separator)})"
        return f"TRY_CAST({text} AS {_SQL[self.kind]})"


def guess_column(
    name: str, texts: Sequence[str], shares: dict[Kind, float], *, is_json_list: bool = False
) -> TextColumn:
    """Guess the kind of a column.

    Args:
        name: Name of the column.
        texts: Some of its values, not null.
        shares: Share of the sample's non-null values that match each kind other than lists.
        is_json_list: Whether the values are JSON arrays.
    """
    if is_json_list:
        items = [text.strip("[] ").replace(" ", "") for text in texts]
        return TextColumn(name, _kind_of_items([item for text in items for item in text.split(",") if item]), JSON)
    kinds: tuple[Kind, ...] = ("integer", "unsigned", "number", "boolean", "time")
    for kind in kinds:
        if shares.get(kind, 0.0) >= MIN_FIT:
            return TextColumn(name, kind)
    separator = _separator(texts)
    if separator is None:
        return TextColumn(name, "text")
    items = [item for text in texts for item in text.strip(separator).split(separator)]
    return TextColumn(name, _kind_of_items(items), separator)


def quoted(text: str) -> str:
    """A string as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def _separator(texts: Sequence[str]) -> str | None:
    """The separator of list elements; None if the strings are not lists."""
    found: Counter[str] = Counter()
    for separator, item in SEPARATORS.items():
        lists = [text for text in texts if separator in text]
        if len(lists) < max(1.0, MIN_LISTS * len(texts)):
            continue
        if all(item.fullmatch(part) for text in texts for part in text.strip(separator).split(separator)):
            found[separator] = len(lists)
    return found.most_common(1)[0][0] if found else None


def _kind_of_items(items: Sequence[str]) -> Kind:
    for kind, pattern in (("integers", _INTEGER), ("numbers", _NUMBER)):
        if items and sum(re.fullmatch(pattern, item) is not None for item in items) >= MIN_FIT * len(items):
            return "integers" if kind == "integers" else "numbers"
    return "texts"
