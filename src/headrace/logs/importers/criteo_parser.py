"""Parses Criteo's tab-separated lines in one pass over the bytes, and locates errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel

__all__ = ["NUM_COLUMNS", "NUM_IDS", "NUM_INTEGERS", "BadLine", "ParsedLines", "column_name", "parse_lines"]

NUM_INTEGERS, NUM_IDS = 13, 26
NUM_COLUMNS = 1 + NUM_INTEGERS + NUM_IDS

_TAB, _NEWLINE, _RETURN, _MINUS = b"\t\n\r-"
_HEX_DIGITS = np.full(256, 16, np.uint8)
"""Hex digit value of each character, 16 for others."""
_HEX_DIGITS[list(b"0123456789abcdef")] = np.arange(16)
_HEX_DIGITS[list(b"ABCDEF")] = np.arange(10, 16)
_WRONG_COUNT, _NOT_LABEL, _NOT_INTEGER, _TOO_LARGE, _NOT_HEX = 1, 2, 3, 4, 5


@dataclass(frozen=True)
class BadLine:
    """An invalid line.

    Attributes:
        line: Index among the parsed lines.
        column: Name of the column, or None if the number of columns is wrong.
        reason: The given and the expected value.
        text: Text of the line.
    """

    line: int
    column: str | None
    reason: str
    text: str


@dataclass(frozen=True)
class ParsedLines:
    """Parsed good lines, and errors of bad lines.

    Attributes:
        num_lines: Number of lines, good and bad.
        lines: i64[N], index of each good line among the parsed lines.
        values: i64[40, N], one row per column of the file; 0 for empty values.
        given: bool[40, N], False for empty values.
        bad: Bad lines in order.
    """

    num_lines: int
    lines: npt.NDArray[np.int64]
    values: npt.NDArray[np.int64]
    given: npt.NDArray[np.bool_]
    bad: tuple[BadLine, ...]


def column_name(column: int) -> str:
    """Name of a column of the file: label, I1-I13, C1-C26."""
    if column == 0:
        return "label"
    return f"I{column}" if column <= NUM_INTEGERS else f"C{column - NUM_INTEGERS}"


def parse_lines(text: bytes) -> ParsedLines:
    """Parse complete lines, each terminated by a newline (or carriage return and newline)."""
    num_lines = text.count(b"\n")
    lines = np.empty(num_lines, np.int64)
    values, given = np.empty((NUM_COLUMNS, num_lines), np.int64), np.empty((NUM_COLUMNS, num_lines), np.bool_)
    wrong = np.empty((num_lines, 5), np.int64)  # line, start, stop, column, kind of error
    good, bad = _parse(np.frombuffer(text, np.uint8), _HEX_DIGITS, lines, values, given, wrong)
    mistakes = tuple(_describe(text, *(int(value) for value in mistake)) for mistake in wrong[:bad])
    return ParsedLines(num_lines, lines[:good], values[:, :good], given[:, :good], mistakes)


def _describe(text: bytes, line: int, start: int, stop: int, column: int, what: int) -> BadLine:
    raw = text[start:stop].decode("utf-8", errors="replace").rstrip("\r\n")
    fields = raw.split("\t")
    if what == _WRONG_COUNT:
        return BadLine(line, None, f"given {len(fields)} columns, expected {NUM_COLUMNS}", raw)
    expected = {
        _NOT_LABEL: "0 or 1",
        _NOT_INTEGER: "an integer or nothing",
        _TOO_LARGE: "an integer of 32 bits",
        _NOT_HEX: "8 hex digits or nothing",
    }[what]
    return BadLine(line, column_name(column), f"given {fields[column][:40]!r}, expected {expected}", raw)


@kernel()
def _parse(
    data: npt.NDArray[np.uint8],
    hex_digits: npt.NDArray[np.uint8],
    lines: npt.NDArray[np.int64],
    values: npt.NDArray[np.int64],
    given: npt.NDArray[np.bool_],
    wrong: npt.NDArray[np.int64],
) -> tuple[int, int]:
    """Fill the arrays; returns the numbers of good and bad lines. A bad line's column is the first invalid one."""
    good, bad, line, start = 0, 0, 0, 0
    while start < len(data):
        at, column, mistake, mistake_column = start, 0, 0, 0
        while True:
            begin = at
            while data[at] != _TAB and data[at] != _NEWLINE:
                at += 1
            end = at
            last = data[at] == _NEWLINE
            if last and end > begin and data[end - 1] == _RETURN:
                end -= 1
            if mistake == 0 and column < NUM_COLUMNS:
                if column > NUM_INTEGERS:
                    value, mistake = _parse_hex(data, begin, end, hex_digits)
                elif column > 0:
                    value, mistake = _parse_integer(data, begin, end)
                else:
                    value = int(np.int64(data[begin])) - 48
                    mistake = 0 if end - begin == 1 and 0 <= value <= 1 else _NOT_LABEL
                values[column, good] = value
                given[column, good] = end > begin
                mistake_column = column
            column += 1
            at += 1
            if last:
                break
        if column != NUM_COLUMNS:
            mistake = _WRONG_COUNT
        if mistake == 0:
            lines[good] = line
            good += 1
        else:
            wrong[bad, 0], wrong[bad, 1], wrong[bad, 2] = line, start, at
            wrong[bad, 3], wrong[bad, 4] = mistake_column, mistake
            bad += 1
        start = at
        line += 1
    return good, bad


@kernel()
def _parse_integer(data: npt.NDArray[np.uint8], begin: int, end: int) -> tuple[int, int]:
    negative = end > begin and data[begin] == _MINUS
    if negative and end == begin + 1:
        return 0, _NOT_INTEGER
    value = 0
    for at in range(begin + negative, end):
        digit = int(np.int64(data[at])) - 48
        if digit < 0 or digit > 9:
            return 0, _NOT_INTEGER
        if value < 1 << 40:  # longer numbers are too large anyway, and must not overflow
            value = value * 10 + digit
    value = -value if negative else value
    return (0, _TOO_LARGE) if value < -(1 << 31) or value >= 1 << 31 else (value, 0)


@kernel()
def _parse_hex(data: npt.NDArray[np.uint8], begin: int, end: int, hex_digits: npt.NDArray[np.uint8]) -> tuple[int, int]:
    if end == begin:
        return 0, 0
    if end - begin != 8:
        return 0, _NOT_HEX
    value, seen = 0, 0
    for k in range(8):
        # A table instead of comparisons, because branches on digit or letter are unpredictable.
        digit = int(np.int64(hex_digits[data[begin + k]]))
        seen |= digit
        value = value << 4 | digit
    return (0, _NOT_HEX) if seen > 15 else (value, 0)
