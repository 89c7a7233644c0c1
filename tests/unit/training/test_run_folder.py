"""A run folder takes back what its newest checkpoint does not count."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.errors import ConfigError, HeadraceError
from headrace.training.run_folder import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.lock()
    yield folder
    folder.unlock()


def test_a_second_writer_is_refused_and_told_who_holds_the_run(run: RunFolder) -> None:
    with pytest.raises(HeadraceError, match=r"process \d+ is writing to this run"):
        RunFolder(run.path).lock()
    run.unlock()
    second = RunFolder(run.path)
    second.lock()
    second.unlock()


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file/run: cannot be written"):
        RunFolder(tmp_path / "file" / "run").lock()


def test_rewind_removes_only_what_lies_beyond_the_checkpoint(run: RunFolder) -> None:
    for number in (1, 2):
        run.write_ledger(number, [number * 10 - 1, number * 10], [pa.array([1, 2]), pa.array([3])])
        run.append_metrics({"kind": "step", "checkpoint": number, "step": number * 10, "loss": float("nan")})
    run.unlock()
    assert run.rewind(1) == ["ledger/00000002.parquet", "metrics.jsonl"]
    assert [record["step"] for record in run.read_metrics()] == [10]
    assert run.rewind(1) == []


def test_a_line_cut_short_by_a_kill_is_left_out_and_cut_away(run: RunFolder) -> None:
    run.append_metrics({"kind": "step", "checkpoint": 1})
    run.unlock()
    with run.metrics.open("a") as file:
        file.write('{"kind": "st')
    assert len(run.read_metrics()) == 1
    assert run.rewind(1) == ["metrics.jsonl"]
    assert json.loads(run.metrics.read_text()) == {"kind": "step", "checkpoint": 1}


def test_the_ledger_says_which_step_trained_on_which_row(run: RunFolder) -> None:
    run.write_ledger(2, [1, 2], [pa.array([7, 8]), pa.array([9])])
    table = pq.read_table(run.ledger / "00000002.parquet")
    assert table.to_pydict() == {"step": [1, 1, 2], "row_id": [7, 8, 9]}


def test_replayed_quarantine_files_wait_again_after_going_back_to_a_checkpoint_before_the_replay(
    run: RunFolder,
) -> None:
    run.quarantine.mkdir()
    for number in (1, 2):
        pq.write_table(pa.table({"row": [number]}), run.quarantine / f"{number:08d}.parquet")
    run.set_aside(("00000001.parquet", "00000002.parquet"))
    assert run.quarantined() == []
    run.rewind(1)  # rows of checkpoint 2 are read again, and rejected again
    run.set_aside(())
    assert [path.name for path in run.quarantined()] == ["00000001.parquet"]


def test_rewind_leaves_files_of_other_names_alone(run: RunFolder) -> None:
    run.quarantine.mkdir()
    pq.write_table(pa.table({"row": [1]}), run.quarantine / "notes.parquet")
    assert run.rewind(0) == []


def test_a_quarantine_belongs_to_one_run(tmp_path: Path) -> None:
    shared = str(tmp_path / "bad rows")
    for _ in range(2):
        first = RunFolder(tmp_path / "first", quarantine=shared)
        first.lock()
        first.unlock()
    second = RunFolder(tmp_path / "second", quarantine=shared)
    with pytest.raises(ConfigError, match=r"is the quarantine of .*first; give each run its own"):
        second.lock()
    second.unlock()
