"""What a run leaves behind however it ends: its table, line by line where nobody watches, and its report."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from headrace.cli.results import RunResults
from headrace.pipeline import RowStats
from headrace.training import RunTotals, Scores, WindowResult
from headrace.training.run_folder import RunFolder

SCORES = Scores(rows=100, auc=0.75, auc_error=0.0, log_loss=0.5, ne=0.9, calibration=1.01, label_rate=0.25)
STEP = {"kind": "step", "rows": 100, "time_s": 1.0, "step": 1, "loss": 0.5, "seconds": {"wait": 1.0}, "checkpoint": 1}


def window(name: str) -> WindowResult:
    return WindowResult(name, RowStats(num_used=100), 2.0, {"click": SCORES}, None, math.nan)


def record(run: Path) -> None:
    folder = RunFolder(run)
    folder.lock()
    folder.append_metrics(STEP)
    folder.unlock()


def test_where_output_streams_each_window_is_a_line_as_it_ends_and_none_comes_twice(tmp_path: Path) -> None:
    lines: list[str] = []
    results = RunResults(tmp_path, streams=True, echo=lambda text: lines.extend(text.splitlines()))
    results.add(window("hour=1"))
    assert [line.split()[0] for line in lines] == ["window", "-" * 20, "hour=1"]
    results.add(window("hour=2"))
    assert lines[-1].split()[0] == "hour=2"
    record(tmp_path)
    results.finish("nothing new", stopped=False)
    assert lines[4:] == ["nothing new", f"report: {tmp_path}/report.html"]


def test_on_a_terminal_the_table_comes_at_the_end(tmp_path: Path) -> None:
    lines: list[str] = []
    results = RunResults(tmp_path, streams=False, echo=lambda text: lines.extend(text.splitlines()))
    results.add(window("hour=1"))
    assert lines == []
    record(tmp_path)
    results.finish("nothing new", stopped=False)
    assert [line.split()[0] for line in lines] == ["window", "------", "hour=1", "nothing", "report:"]


@pytest.mark.parametrize("streams", [False, True])
def test_a_run_that_fails_leaves_its_table_and_its_report(tmp_path: Path, streams: bool) -> None:
    lines: list[str] = []
    results = RunResults(tmp_path, streams=streams, echo=lambda text: lines.extend(text.splitlines()))
    results.add(window("hour=1"))
    record(tmp_path)
    results.fail()
    assert [line.split()[0] for line in lines[2:]] == ["hour=1", "report:"]
    assert (tmp_path / "report.html").is_file()


@pytest.mark.parametrize("streams", [False, True])
def test_the_table_closes_with_the_whole_run_and_alarms_come_below_it(tmp_path: Path, streams: bool) -> None:
    lines: list[str] = []
    results = RunResults(tmp_path, streams=streams, echo=lambda text: lines.extend(text.splitlines()))
    worse = replace(SCORES, ne=1.3)
    run = RunTotals(RowStats(num_used=300), 6.0, {"click": worse})
    folder = RunFolder(tmp_path)
    folder.lock()
    for name in ("hour=1", "hour=2"):
        one = replace(window(name), run=run, scores={"click": worse})
        results.add(one)
        folder.append_metrics({**one.to_record(step=9, time_s=1.0), "checkpoint": 1})
    folder.unlock()
    results.finish("nothing new", stopped=False)
    assert lines[3].split()[:2] == ["hour=2", "100"]
    assert set(lines[4]) == {"-", " "}
    assert lines[5].split() == ["whole", "run", "300", "0", "50", "0.7500", "0.5000", "1.3000"]
    assert lines[6] == "ALARM: NE 1.3000 over all rows: worse than always predicting the label rate"
    assert lines[7] == "  likely reason: the model made only 9 steps"
    assert lines[9:] == ["nothing new", f"report: {tmp_path}/report.html"]
    assert "What to change: a smaller training.batch_size" in (tmp_path / "report.html").read_text()


def test_a_run_that_fails_in_its_first_window_leaves_a_report_of_the_steps_it_made(tmp_path: Path) -> None:
    lines: list[str] = []
    results = RunResults(tmp_path, streams=True, echo=lines.append)
    record(tmp_path)
    results.fail()
    assert lines == [f"report: {tmp_path}/report.html"]


def test_a_run_that_fails_before_its_first_step_says_no_more(tmp_path: Path) -> None:
    lines: list[str] = []
    record(tmp_path)  # of an earlier run
    RunResults(tmp_path, streams=True, echo=lines.append).fail()
    assert lines == []


def test_what_goes_wrong_with_the_report_does_not_hide_why_a_run_failed(tmp_path: Path) -> None:
    results = RunResults(tmp_path / "missing", streams=True, echo=lambda text: None)
    results.add(window("hour=1"))
    results.fail()  # there are no metrics to report


def test_training_goes_on_when_nobody_reads_the_lines(tmp_path: Path) -> None:
    def broken(text: str) -> None:
        raise BrokenPipeError

    results = RunResults(tmp_path, streams=True, echo=broken)
    results.add(window("hour=1"))
    results.fail()
