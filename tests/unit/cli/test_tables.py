"""Tables show what is there and leave out columns nobody filled."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from headrace.cli.tables import WindowTable, run_table, scores_table, text_table, window_table, wrapped
from headrace.messages import to_json
from headrace.observe.run_data import RunData
from headrace.pipeline import RowStats
from headrace.training import RunTotals, Scores, WindowResult

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


def test_a_total_comes_below_a_rule() -> None:
    assert text_table(["name", "n"], [["a", "1"]], ["all", "1,000"]).splitlines() == [
        "name      n",
        "----  -----",
        "a         1",
        "----  -----",
        "all   1,000",
    ]


def test_the_whole_run_closes_the_table_unless_it_is_that_one_window() -> None:
    first, last = window(best_ne=0.8), replace(window(best_ne=0.8), name="hour=2")
    totals = RunTotals(RowStats(num_used=2400, num_dropped=68), 4.0, {"click": replace(SCORES, auc=0.7)})
    last = replace(last, run=totals)
    *_, rule, line = window_table([first, last]).splitlines()
    assert set(rule) == {"-", " "}
    assert line.split() == ["whole", "run", "2,400", "68", "600", "0.7000", "0.5000", "0.9000"]
    table = WindowTable()
    streamed = [*table.lines(first), *table.lines(last), *table.total(last)]
    assert streamed[-1].split() == line.split()
    first, last = (replace(each, baseline_auc=0.65) for each in (first, last))
    last = replace(last, run=replace(totals, baseline_auc=0.61))
    *_, line = window_table([first, last]).splitlines()
    assert line.split() == ["whole", "run", "2,400", "68", "600", "0.7000", "0.5000", "0.9000", "0.6100"]
    assert line.endswith("0.6100"), "below the last column, as the best NE of all rows is not known"
    alone = replace(first, run=RunTotals(first.rows, 2.0, first.scores))
    assert len(window_table([alone]).splitlines()) == 3
    table.lines(alone)
    assert table.total(alone) == []


def test_the_table_of_a_run_folder_is_that_of_its_windows(tmp_path: Path) -> None:
    totals = RunTotals(RowStats(num_used=2400, num_dropped=68), 4.0, {"click": replace(SCORES, auc=0.7)}, 0.58)
    windows = [window(baseline_auc=0.6), replace(window(baseline_auc=0.6), name="hour=2", run=totals)]
    records = [one.to_record(step=1, time_s=1.0) for one in windows]
    (tmp_path / "metrics.jsonl").write_text("".join(to_json(record) + "\n" for record in records))
    lines = run_table(RunData.read(tmp_path)).splitlines()
    assert [line.split() for line in lines] == [line.split() for line in window_table(windows).splitlines()]
    (tmp_path / "metrics.jsonl").write_text("")
    assert run_table(RunData.read(tmp_path)) == ""


def test_paragraphs_are_wrapped_for_terminals_only() -> None:
    text = "One window for each of 6 folders."
    assert wrapped(text, indent=2) == "  One window for each of 6 folders."  # tests have no terminal
    assert wrapped(text, indent=2, width=20) == "  One window for\n  each of 6 folders."
    assert wrapped("/a/name-that-is-longer", width=8) == "/a/name-that-is-longer"
