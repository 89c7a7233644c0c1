"""Checkpoints of a run are listed, and a run goes back to one of them and on from there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from headrace.cli.app import app
from headrace.errors import CheckpointError
from headrace.logs.generate import GenerateConfig, generate_logs
from headrace.training import CheckpointFolder, Trainer
from headrace.training.checkpoint_list import list_checkpoints
from headrace.training.job import JobConfig


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    generate_logs(GenerateConfig(rows=600, windows=2, users=30, items=30, seed=5), folder / "logs")
    return folder / "logs"


def job_of(logs: Path, run: Path, kind: str) -> JobConfig:
    values = {
        "run": str(run),
        "data": {"path": str(logs)},
        "model": {"kind": "dlrm", "embedding_dim": 4, "bottom": [4], "top": [4]},
        "training": {
            "batch_size": 100,
            "threads": 1,
            "checkpoint_every_steps": 2,
            "row_ledger": True,
            "checkpoints": {"kind": kind, "keep": 9, "base_every": 9},
        },
    }
    return JobConfig.from_dict(values, where="job").resolve(run.parent)


def saved(run: Path, number: int) -> dict[str, bytes]:
    snapshot = CheckpointFolder(run / "checkpoints").load(number)
    arrays = {name: array.tobytes() for name, array in snapshot.arrays["dense"].items()}
    columns = snapshot.columns["embeddings"]
    return arrays | {name: columns[name].tobytes() for name in ("weights", "slot.accumulator", "version")}


@pytest.mark.parametrize("kind", ["delta", "whole"])
def test_a_run_is_taken_back_to_a_checkpoint_and_goes_on_from_there(logs: Path, tmp_path: Path, kind: str) -> None:
    run = tmp_path / "run"
    Trainer(job_of(logs, run, kind)).run()
    listed = list_checkpoints(run / "checkpoints")
    assert [each.number for each in listed] == [1, 2, 3, 4, 5]
    assert [each.step for each in listed] == [2, 3, 4, 6, 6]
    assert listed[0].window.endswith(", in progress")
    if kind == "delta":
        assert [each.kind for each in listed] == ["base", "delta", "delta", "delta", "delta"]
        assert [each.num_segments for each in listed] == [1, 2, 3, 4, 2], "four deltas were merged"
        assert all(each.restore_bytes > each.own_bytes for each in listed[1:])
    else:
        assert {each.kind for each in listed} == {"whole"}
        assert all(each.restore_bytes == each.own_bytes for each in listed)
    before = {number: saved(run, number) for number in (2, 5)}

    done = CliRunner().invoke(app, ["restore", str(run), "--version", "2"])
    assert done.exit_code == 0, done.output
    assert "moved output newer than the checkpoint" in done.output
    assert "checkpoint 2, after 3 steps, is the newest" in done.output
    assert [each.number for each in list_checkpoints(run / "checkpoints")] == [1, 2]
    assert saved(run, 2) == before[2]

    Trainer(job_of(logs, run, kind)).run()
    assert saved(run, 5) == before[5]


def test_commands_show_checkpoints_and_damage(logs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    Trainer(job_of(logs, run, "delta")).run(windows=1)
    shown = CliRunner().invoke(app, ["checkpoints", str(run), "--verify"])
    assert shown.exit_code == 0, shown.output
    assert [line.split()[0] for line in shown.output.splitlines()[2:]] == ["1", "2"]
    values = json.loads(CliRunner().invoke(app, ["checkpoints", str(run), "--json"]).output)
    assert [(each["number"], each["kind"], each["table_groups"]) for each in values] == [
        (1, "base", ["embeddings"]),
        (2, "delta", ["embeddings"]),
    ]
    segment = next((run / "checkpoints" / "segments" / "embeddings").glob("00000002-*.rows"))
    segment.write_bytes(segment.read_bytes()[:-1])
    shown = CliRunner().invoke(app, ["checkpoints", str(run), "--verify"])
    assert shown.exit_code == 2
    assert "checkpoint 2: refused" in shown.output
    refused = CliRunner().invoke(app, ["restore", str(run), "--version", "2"])
    assert isinstance(refused.exception, CheckpointError)
    assert segment.name in str(refused.exception)
    missing = CliRunner().invoke(app, ["restore", str(run), "--version", "7"])
    assert "there is no checkpoint 7, expected one of: 1, 2" in str(missing.exception)


def test_a_run_without_checkpoints_says_so(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["checkpoints", str(tmp_path)])
    assert "no checkpoint yet" in shown.output
