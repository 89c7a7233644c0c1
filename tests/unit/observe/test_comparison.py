"""Two runs beside each other: settings that differ, windows by name, and the whole."""

import json
import math
from pathlib import Path
from typing import Any

from headrace.observe.comparison import compare_runs
from headrace.observe.run_data import RunData


def run(folder: Path, job: str, *windows: dict[str, Any]) -> RunData:
    folder.mkdir()
    (folder / "config.yaml").write_text(job)
    lines = [json.dumps({"kind": "window", **window}) for window in windows]
    (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    return RunData.read(folder)


def window(name: str, auc: float, ne: float, **more: Any) -> dict[str, Any]:
    base = {"window": name, "rows": 1000, "seconds": 2.0, "rows_per_s": 500.0, "auc": auc, "ne": ne, "log_loss": 0.5}
    return {**base, "calibration": 1.0, **more}


JOB = "run: {}\nmodel: {{kind: {}, bottom: [64]}}\ntraining: {{batch_size: 512}}\n"


def test_settings_that_differ_are_listed_and_others_are_not(tmp_path: Path) -> None:
    first = run(tmp_path / "a", JOB.format("a", "dlrm"))
    second = run(tmp_path / "b", "run: b\nmodel: {kind: dcnv2, deep: [512, 256]}\ntraining: {batch_size: 512}\n")
    assert compare_runs(first, second).settings == [
        ("model.kind", "dlrm", "dcnv2"),
        ("model.bottom", "[64]", "-"),
        ("model.deep", "-", "[512,256]"),
    ]
    assert compare_runs(first, first).settings == []


def test_windows_are_matched_by_name_and_the_whole_run_closes_them(tmp_path: Path) -> None:
    whole = {"rows": 2000, "bad": 0, "seconds": 4.0, "auc": 0.71, "ne": 0.91, "log_loss": 0.5, "calibration": 1.0}
    first = run(tmp_path / "a", JOB, window("h1", 0.7, 0.92), window("h2", 0.72, 0.9, run=whole))
    better = {**whole, "seconds": 2.0, "auc": 0.715, "ne": 0.9}
    second = run(tmp_path / "b", JOB, window("h2", 0.73, 0.89), window("h3", 0.8, 0.8, run=better))
    found = compare_runs(first, second)
    assert found.window_rows() == [
        ["h1", "1,000", "-", "0.7000", "-", "0.9200", "-", "500", "-"],
        ["h2", "1,000", "1,000", "0.7200", "0.7300", "0.9000", "0.8900", "500", "500"],
        ["h3", "-", "1,000", "-", "0.8000", "-", "0.8000", "-", "500"],
        ["whole run", "2,000", "2,000", "0.7100", "0.7150", "0.9100", "0.9000", "500", "1,000"],
    ]
    assert found.verdict() == "run 2 against run 1, over all rows: NE 0.0100 lower, AUC 0.0050 higher, 2.00x the rows/s"
    plain = found.to_dict()
    assert plain["windows"]["h1"][1] is None
    assert plain["whole_run"][1]["ne"] == 0.9


def test_runs_over_other_rows_are_not_judged(tmp_path: Path) -> None:
    first = run(tmp_path / "a", JOB, window("h1", 0.7, 0.92))
    second = run(tmp_path / "b", JOB, window("h1", 0.7, 0.92), window("h2", 0.7, 0.92))
    assert compare_runs(first, second).verdict().startswith("not the same rows: 1,000 and 2,000;")
    assert "NE the same" in compare_runs(first, first).verdict()
    empty = run(tmp_path / "c", JOB)
    assert "without a finished window" in compare_runs(first, empty).verdict()


def test_runs_of_an_older_version_have_means_of_their_windows(tmp_path: Path) -> None:
    small = window("h2", 0.8, 0.8, rows=3000, seconds=2.0, dropped=5)
    whole = run(tmp_path / "a", JOB, window("h1", 0.6, 1.0), small).whole()
    assert whole is not None
    assert whole.is_mean
    assert (whole.rows, whole.bad, whole.seconds, whole.rows_per_s) == (4000, 5, 4.0, 1000.0)
    assert math.isclose(whole.auc, 0.75)
