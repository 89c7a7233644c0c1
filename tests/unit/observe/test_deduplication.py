"""The table of what deduplication saved adds up the records of a run, and is empty where nothing repeated."""

import json
from pathlib import Path

from headrace.observe.deduplication import deduplication_rows
from headrace.observe.report import render_report
from headrace.observe.run_data import RunData


def run_with(folder: Path, records: list[dict[str, int]]) -> RunData:
    lines = [{"kind": "step", "time_s": at, "rows": at, "dedup": record} for at, record in enumerate(records, start=1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return RunData.read(folder)


def test_records_add_up(tmp_path: Path) -> None:
    record = {"num_plain_values": 3000, "num_values": 1000, "num_plain_ids": 800, "num_ids": 100}
    record |= {"num_plain_read_bytes": 1000, "num_read_bytes": 250}
    data = run_with(tmp_path, [record, record | {"num_values": 2000}])
    assert deduplication_rows(data) == [
        ["bytes read from files", "2,000", "500", "4.00x"],
        ["features computed", "6,000", "3,000", "2.00x"],
        ["ids written and looked up", "1,600", "200", "8.00x"],
    ]


def test_a_run_without_repeats_has_no_table(tmp_path: Path) -> None:
    assert deduplication_rows(run_with(tmp_path, [{"num_plain_ids": 5, "num_ids": 5}])) == []
    assert deduplication_rows(run_with(tmp_path, [])) == []


def test_the_report_shows_the_table_where_there_is_one(tmp_path: Path) -> None:
    page = render_report(run_with(tmp_path, [{"num_plain_ids": 800, "num_ids": 100}]), made="now")
    assert "<td>ids written and looked up</td><td>800</td><td>100</td><td>8.00x</td>" in page
    assert "Deduplication" not in render_report(run_with(tmp_path, [{"num_plain_ids": 5, "num_ids": 5}]), made="now")
