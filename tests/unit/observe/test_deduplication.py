"""The table of what deduplication saved adds up the records of a run, and is empty where nothing repeated."""

import json
from pathlib import Path

from headrace.observe.deduplication import deduplication_rows
from headrace.observe.run_data import RunData


def run_with(folder: Path, records: list[dict[str, int]]) -> RunData:
    lines = [{"kind": "step", "time_s": at, "rows": at, "dedup": record} for at, record in enumerate(records, start=1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return RunData.read(folder)


def test_records_add_up(tmp_path: Path) -> None:
    record = {"num_plain_values": 3000, "num_values": 1000, "num_plain_ids": 800, "num_ids": 100}
    data = run_with(tmp_path, [record, record | {"num_values": 2000}])
    assert deduplication_rows(data) == [
        ["features computed", "6,000", "3,000", "2.00x"],
        ["ids written into batches", "1,600", "200", "8.00x"],
    ]


def test_a_run_without_repeats_has_no_table(tmp_path: Path) -> None:
    assert deduplication_rows(run_with(tmp_path, [{"num_plain_ids": 5, "num_ids": 5}])) == []
    assert deduplication_rows(run_with(tmp_path, [])) == []
