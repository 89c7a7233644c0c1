"""Tables show what is there and leave out columns nobody filled."""

import math
from dataclasses import replace

import pytest

from headrace.cli.tables import WindowTable, scores_table, text_table, window_table
from headrace.pipeline import RowStats
from headrace.training import Scores, WindowResult

SCORES = Scores(rows=1200, auc=0.75, auc_error=0.0, log_loss=0.5, ne=0.9, calibration=1.01, label_rate=0.25)


def window(best_ne: float | None = None, baseline_auc: float = math.nan, seconds: float = 2.0) -> WindowResult:
    rows = RowStats(num_used=1200, num_dropped=34)
    return WindowResult("hour=1", rows, seconds, {"click": SCORES}, best_ne, baseline_auc)


def test_columns_are_as_wide_as_their_longest_cell_and_numbers_end_together() -> None:
    assert text_table(["name", "n"], [["a", "1,000"], ["long name", "7"]]).splitlines() == [
        "name           n",
        "---------  -----",
        "a          1,000",
        "long name      7",
    ]


def test_a_window_is_one_line() -> None:
    header, _, line = window_table([window()]).splitlines()
    assert header.split() == ["window", "rows", "bad", "rows/s", "AUC", "log", "loss", "NE"]
    assert line.split() == ["hour=1", "1,200", "34", "600", "0.7500", "0.5000", "0.9000"]
    assert window_table([window(seconds=0.0)]).splitlines()[-1].split()[3] == "0"


@pytest.mark.parametrize(
    ("given", "title", "cell"),
    [(window(best_ne=0.8), "best NE", "0.8000"), (window(baseline_auc=0.6), "baseline AUC", "0.6000")],
)
def test_bounds_and_baselines_are_shown_where_there_are_any(given: WindowResult, title: str, cell: str) -> None:
    header, _, line = window_table([given]).splitlines()
    assert header.endswith(title)
    assert line.endswith(cell)


def test_lines_of_windows_that_end_one_by_one_are_those_of_the_table() -> None:
    windows = [window(best_ne=0.8), replace(window(best_ne=0.9), name="a name longer than usual"), window(best_ne=1.0)]
    table = WindowTable()
    first, second, third = (table.lines(each) for each in windows)
    assert [len(lines) for lines in (first, second, third)] == [3, 1, 1]
    assert [line.split() for line in [first[0], *first[2:], *second, *third]] == [
        line.split() for line in window_table(windows).splitlines() if not line.startswith("---")
    ]
    assert len(first[0]) == len(first[1]) == len(first[2])
    assert len(second[0]) == len(third[0]) > len(first[0])  # no narrower again


def test_scores_of_each_label_are_one_line() -> None:
    lines = scores_table({"click": SCORES, "buy": SCORES}).splitlines()
    assert lines[2].split() == ["click", "1,200", "0.2500", "0.7500", "0.5000", "0.9000", "1.0100"]
    assert len(lines) == 4
