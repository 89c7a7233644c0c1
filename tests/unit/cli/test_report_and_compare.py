"""`report` and `compare` read runs that are over, or going on, by their folder or their job file."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from headrace.cli.app import app
from headrace.errors import ConfigError
from headrace.training.run_folder import find_run

WINDOW = {"kind": "window", "rows": 1000, "seconds": 2.0, "rows_per_s": 500.0, "log_loss": 0.5, "calibration": 1.0}


def make_run(folder: Path, *, batch_size: int, ne: float) -> Path:
    """A project folder with a job file and its run of two windows."""
    run = folder / "run"
    run.mkdir(parents=True)
    (folder / "job.yaml").write_text("run: run\ndata: {path: logs}\n")
    (run / "config.yaml").write_text(f"run: {run}\ntraining: {{batch_size: {batch_size}}}\n")
    whole = {"rows": 2000, "bad": 0, "seconds": 4.0, "auc": 0.7, "ne": ne, "log_loss": 0.5, "calibration": 1.0}
    records = [{**WINDOW, "window": f"h{n}", "auc": 0.7, "ne": ne, "step": 500, "run": whole} for n in (1, 2)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def invoke(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_report_prints_the_table_and_alarms_and_writes_the_page_again(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", batch_size=512, ne=1.2)
    lines = invoke("report", folder / "job.yaml").stdout.splitlines()
    assert lines[0].split() == ["window", "rows", "bad", "rows/s", "AUC", "log", "loss", "NE"]
    assert lines[5].split() == ["whole", "run", "2,000", "0", "500", "0.7000", "0.5000", "1.2000"]
    assert lines[6].startswith("ALARM: NE 1.2000 over all rows")
    assert lines[-1] == f"report: {folder / 'run' / 'report.html'}"
    page = (folder / "run" / "report.html").read_text()
    assert "<td>whole run</td>" in page
    assert "AUC, all rows" in page
    invoke("report", folder / "run", "--out", tmp_path / "page.html")
    assert (tmp_path / "page.html").is_file()


def test_compare_shows_settings_windows_and_a_verdict(tmp_path: Path) -> None:
    first, second = (
        make_run(tmp_path / n, batch_size=size, ne=ne) for n, size, ne in (("a", 512, 0.9), ("b", 256, 0.88))
    )
    lines = invoke("compare", first, second / "job.yaml").stdout.splitlines()
    assert lines[:2] == [f"run 1: {first / 'run'}", f"run 2: {second / 'run'}"]
    assert lines[3].split() == ["setting", "run", "1", "run", "2"]
    assert lines[5].split() == ["training.batch_size", "512", "256"]
    header = [
        "window",
        "rows",
        "1",
        "rows",
        "2",
        "AUC",
        "1",
        "AUC",
        "2",
        "NE",
        "1",
        "NE",
        "2",
        "rows/s",
        "1",
        "rows/s",
        "2",
    ]
    assert lines[7].split() == header
    assert lines[9].split() == ["h1", "1,000", "1,000", "0.7000", "0.7000", "0.9000", "0.8800", "500", "500"]
    assert lines[12].split()[:2] == ["whole", "run"]
    assert lines[-1] == "run 2 against run 1, over all rows: NE 0.0200 lower, AUC the same, 1.00x the rows/s"
    found = json.loads(invoke("compare", first, second, "--json").stdout)
    assert found["settings"] == {"training.batch_size": ["512", "256"]}
    assert found["runs"] == [str(first / "run"), str(second / "run")]


def test_a_run_is_found_by_its_folder_its_job_or_the_folder_of_its_job(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", batch_size=512, ne=0.9)
    for place in (folder, folder / "job.yaml", folder / "run", folder / "run" / "config.yaml"):
        assert find_run(place).resolve() == (folder / "run").resolve()
    with pytest.raises(ConfigError, match="no such file or folder, expected a run folder or a job file"):
        find_run(tmp_path / "missing")
    (tmp_path / "schema.yaml").write_text("labels: [click]\n")
    with pytest.raises(ConfigError, match="has no key run, expected a run folder or a job file"):
        find_run(tmp_path / "schema.yaml")


def test_explain_says_which_tables_gained_and_lost_rows_under_a_budget(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", batch_size=512, ne=0.9) / "run"
    tables = {"user": {"rows": 10, "gained": 4010, "lost": 4000}, "item": {"rows": 2500, "gained": 2500, "lost": 0}}
    record = {"kind": "step", "time_s": 1.0, "step": 1, "seconds": {"forward": 1.0}, "budget": tables}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    text = invoke("explain", run).stdout
    lines = [line.split() for line in text.splitlines()]
    item, user = lines.index(["item", "2,500", "2,500", "0"]), lines.index(["user", "10", "4,010", "4,000"])
    assert item < user
    assert "table under the budget" in text
