"""Criteo's lines, parsed as a plain Python definition would, mistakes included."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.logs.importers.criteo_parser import column_name, parse_lines

INTEGERS = st.one_of(
    st.just(""), st.integers(-3, 2**31 + 5).map(str), st.sampled_from(["-", "1.5", "x", "9" * 30, "+1"])
)
HEX = st.one_of(
    st.just(""),
    st.integers(0, 2**32 - 1).map(lambda i: f"{i:08x}"),
    st.sampled_from(["ABCDEF09", "1234567", "123456789", "0123456g", "0x123456"]),
)
LABELS = st.sampled_from(["0", "1"]) | st.sampled_from(["", "2", "-1", "01", "1.0"])


@st.composite
def lines(draw: st.DrawFn) -> str:
    """Mostly good lines with one odd field; sometimes a wrong number of columns."""
    fields = ["1"] + [str(i) for i in range(13)] + [f"{i:08x}" for i in range(26)]
    for column in draw(st.lists(st.integers(0, 39), max_size=3)):
        fields[column] = draw(LABELS if column == 0 else INTEGERS if column <= 13 else HEX)
    return "\t".join(fields[: draw(st.sampled_from([40, 40, 40, 39, 1, 0]))] + draw(st.sampled_from([[], [], ["x"]])))


def meaning(column: int, field: str) -> int | None:
    """The value of a field, None where empty; ValueError where it is wrong."""
    if column == 0:
        if field not in ("0", "1"):
            raise ValueError
        return int(field)
    if not field:
        return None
    if column <= 13:
        if not field.removeprefix("-").isdigit() or not -(2**31) <= int(field) < 2**31:
            raise ValueError
        return int(field)
    if len(field) != 8 or not set(field) <= set("0123456789abcdefABCDEF"):
        raise ValueError
    return int(field, 16)


@given(st.lists(lines(), max_size=6), st.sampled_from(["\n", "\r\n"]))
def test_lines_mean_what_the_definition_says(texts: list[str], end: str) -> None:
    parsed = parse_lines("".join(text + end for text in texts).encode())
    good, bad = [], []
    for number, text in enumerate(texts):
        fields = text.split("\t")
        wrong = None
        values = []
        for column, field in enumerate(fields[:40]):
            try:
                values.append(meaning(column, field))
            except ValueError:
                wrong = wrong or column_name(column)
        if len(fields) != 40:
            bad.append((number, None, text))
        elif wrong is not None:
            bad.append((number, wrong, text))
        else:
            good.append((number, values))
    assert parsed.num_lines == len(texts)
    assert parsed.lines.tolist() == [number for number, _ in good]
    assert [(mistake.line, mistake.column, mistake.text) for mistake in parsed.bad] == bad
    for row, (_, values) in enumerate(good):
        assert [
            v if g else None for v, g in zip(parsed.values[:, row].tolist(), parsed.given[:, row], strict=True)
        ] == values


@pytest.mark.parametrize(
    ("column", "field", "reason"),
    [
        (0, "2", "given '2', expected 0 or 1"),
        (0, "", "given '', expected 0 or 1"),
        (3, "1.5", "given '1.5', expected an integer or nothing"),
        (13, "-", "given '-', expected an integer or nothing"),
        (1, "2147483648", "given '2147483648', expected an integer of 32 bits"),
        (1, "-99999999999999999999", "given '-99999999999999999999', expected an integer of 32 bits"),
        (14, "1234567", "given '1234567', expected 8 hex digits or nothing"),
        (39, "1234567g", "given '1234567g', expected 8 hex digits or nothing"),
    ],
)
def test_a_wrong_field_is_named_with_what_was_expected(column: int, field: str, reason: str) -> None:
    fields = ["1", *["7"] * 13, *["0000000a"] * 26]
    good = "\t".join(fields)
    fields[column] = field
    wrong = "\t".join(fields)
    parsed = parse_lines(f"{good}\n{wrong}\n{good}\n".encode())
    assert parsed.lines.tolist() == [0, 2]
    assert [(mistake.line, mistake.column, mistake.reason) for mistake in parsed.bad] == [
        (1, column_name(column), reason)
    ]


@pytest.mark.parametrize("count", [1, 39, 41])
def test_a_wrong_number_of_columns_is_counted(count: int) -> None:
    (mistake,) = parse_lines(("\t".join(["0"] * count) + "\n").encode()).bad
    assert (mistake.column, mistake.reason) == (None, f"given {count} columns, expected 40")


def test_no_text_has_no_lines() -> None:
    parsed = parse_lines(b"")
    assert parsed.num_lines == 0
    assert parsed.values.shape == (40, 0)


def test_bytes_that_are_no_text_do_no_harm() -> None:
    noise = np.random.default_rng(0).integers(0, 256, 5000, np.uint8).tobytes() + b"\n"
    parsed = parse_lines(noise)
    assert len(parsed.bad) == parsed.num_lines == noise.count(b"\n")
