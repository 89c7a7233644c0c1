"""A run folder moves aside what its newest checkpoint does not count."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.errors import ConfigError, HeadraceError
from headrace.training.checkpoint import CheckpointFolder, Snapshot
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


def test_rewind_moves_only_what_lies_beyond_the_checkpoint(run: RunFolder) -> None:
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
    with pytest.raises(ConfigError, match=r"is the quarantine of .*first; use a separate"):
        second.lock()
    second.unlock()


def test_rewind_deletes_nothing(run: RunFolder) -> None:
    run.quarantine.mkdir()
    for number in (1, 2):
        pq.write_table(pa.table({"row": [number]}), run.quarantine / f"{number:08d}.parquet")
        run.write_ledger(number, [number], [pa.array([number])])
        run.append_metrics({"kind": "step", "checkpoint": number})
        CheckpointFolder(run.checkpoints).save(Snapshot(number, {}))
    run.unlock()
    before = {path.name: path.read_bytes() for path in run.path.rglob("*.parquet") if "00000002" in path.name}
    for again in ("after-00000001", "after-00000001-2"):
        moved = run.rewind(1)
        assert moved[-2:] == ["checkpoints/00000002", "metrics.jsonl"]
        aside = run.rewound / again
        assert {path.name: path.read_bytes() for path in aside.rglob("*.parquet")}.keys() == before.keys()
        assert json.loads((aside / "metrics.jsonl").read_text()) == {"kind": "step", "checkpoint": 2}
        CheckpointFolder(run.path / "rewound" / again / "checkpoints").load(2)
        for name in ("quarantine", "ledger"):
            (aside / name / "00000002.parquet").rename(run.path / name / "00000002.parquet")
        CheckpointFolder(run.checkpoints).save(Snapshot(2, {}))
        run.append_metrics({"kind": "step", "checkpoint": 2})
        run.unlock()


def test_damaged_lines_are_moved_aside_and_the_others_stay(run: RunFolder) -> None:
    good = [b'{"kind": "step", "checkpoint": 1, "step": 1}\n', b'{"kind": "step", "checkpoint": 1, "step": 2}\n']
    bad = [
        b'{"kind": "step", "che\x00ckpo\n',
        b'{"kind": "step"}\n',
        b'{"checkpoint": "1"}\n',
        b'{"checkpoint": null}\n',
        b'{"checkpoint": true}\n',
        b"[1]\n",
        b"\xff\xfe\n",
        b"[" * 100_000 + b"\n",
        b'{"checkpoint": 1}',
    ]
    run.metrics.write_bytes(good[0] + b"".join(bad[:-1]) + good[1] + bad[-1])
    assert run.rewind(1) == ["metrics.jsonl"]
    assert run.metrics.read_bytes() == b"".join(good)
    assert (run.rewound / "after-00000001/metrics.jsonl").read_bytes() == b"".join(bad)
    run.decisions.write_bytes(b'{"who": "tuner"}\nx\n')
    assert run.rewind(1) == ["decisions.jsonl"]
    assert run.decisions.read_bytes() == b'{"who": "tuner"}\n'


def test_odd_names_beside_the_numbered_files_do_not_matter(run: RunFolder) -> None:
    run.ledger.mkdir()
    for name in ("\u00b2.parquet", "9.parquet", "00000009.parquet.bak", ".DS_Store"):
        (run.ledger / name).touch()
    assert run.rewind(1) == []


def started(run: Path, quarantine: Path) -> None:
    folder = RunFolder(run, quarantine=str(quarantine))
    folder.lock()
    folder.unlock()


def test_a_project_may_be_moved_with_its_quarantine(tmp_path: Path) -> None:
    started(tmp_path / "project/run", tmp_path / "project/bad")
    (tmp_path / "project").rename(tmp_path / "moved")
    started(tmp_path / "moved/run", tmp_path / "moved/bad")


def test_a_run_may_be_moved_away_from_its_quarantine_and_deleted_and_begun_again(tmp_path: Path) -> None:
    started(tmp_path / "run", tmp_path / "elsewhere/bad")
    (tmp_path / "run").rename(tmp_path / "renamed")
    started(tmp_path / "renamed", tmp_path / "elsewhere/bad")
    shutil.rmtree(tmp_path / "renamed")
    started(tmp_path / "renamed", tmp_path / "elsewhere/bad")


def test_a_copy_of_a_run_does_not_share_the_quarantine(tmp_path: Path) -> None:
    started(tmp_path / "run", tmp_path / "elsewhere/bad")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    with pytest.raises(ConfigError, match=r"is the quarantine of .*/run; use a separate bad_rows.path"):
        started(tmp_path / "copy", tmp_path / "elsewhere/bad")
    started(tmp_path / "run", tmp_path / "elsewhere/bad")


def test_segments_of_a_checkpoint_are_moved_aside_with_it(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    segments = run.checkpoints / "segments" / "embeddings"
    segments.mkdir(parents=True)
    for number in (1, 2, 3):
        (run.checkpoints / f"{number:08d}").mkdir()
        (segments / f"{number:08d}-{number:08d}-0123abcd.rows").touch()
    assert run.rewind(2) == ["checkpoints/00000003"]
    moved = run.rewound / "after-00000002" / "checkpoints"
    assert [path.name for path in moved.rglob("*.rows")] == ["00000003-00000003-0123abcd.rows"]
    assert sorted(path.name[7] for path in segments.iterdir()) == ["1", "2"]
