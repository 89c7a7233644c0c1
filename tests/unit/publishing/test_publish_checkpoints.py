"""`headrace publish` cuts versions from the checkpoints of a run, of any kind, and goes on where it ended."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from published_rows import assert_newest_is_the_checkpoint, rows_at, rows_of_checkpoint
from typer.testing import CliRunner

from headrace.cli.app import app
from headrace.errors import HeadraceError
from headrace.logs.generate import GenerateConfig, generate_logs
from headrace.publishing.config import PublishConfig
from headrace.publishing.publications import PublicationFolder
from headrace.training import JobConfig, Trainer
from headrace.training.checkpoint_publisher import CheckpointPublisher
from headrace.training.restoring import restore_version


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("publish") / "logs"
    generate_logs(GenerateConfig(rows=3_000, windows=4, users=1_000, items=1_000, seed=5), folder)
    return folder


def train(folder: Path, logs: Path, kind: str = "delta", windows: int = 1, **others: Any) -> Path:
    job = {
        "run": "run",
        "data": {"path": str(logs)},
        "model": {"kind": "deepfm", "embedding_dim": 4, "deep": [4]},
        "embeddings": {"default": {"kind": "collisionless", "num_embeddings": 64, "evict_after": 2}},
        "training": {"batch_size": 256, "threads": 1, "checkpoints": {"kind": kind, "keep": 3}} | others,
    }
    Trainer(JobConfig.from_dict(job, where="job").resolve(folder)).run(windows=windows)
    return folder / "run"


def publish(run: Path) -> int:
    """Publish in a new process, so to say; returns the newest version."""
    publisher = CheckpointPublisher(run, PublishConfig())
    version, lines = publisher.step()
    assert lines == []
    again, _ = publisher.step()
    assert again is None
    publisher.close()
    assert version is not None
    return version.version


@pytest.mark.parametrize("kind", ["delta", "whole"])
def test_versions_follow_checkpoints(kind: str, tmp_path: Path, logs: Path) -> None:
    for window in range(3):
        run = train(tmp_path, logs, kind)
        assert publish(run) == window + 1
        assert_newest_is_the_checkpoint(run)
    folder = PublicationFolder(run / "publications")
    counts = [folder.load(version).rows_changed for version in (1, 2, 3)]
    assert counts[2] < len(rows_of_checkpoint(run))  # not all rows again
    assert all(chain[0].first == 1 for (chain,) in folder.load(3).chains.values())  # bases are merged from the first


def test_one_publisher_takes_the_newest_of_several_checkpoints(tmp_path: Path, logs: Path) -> None:
    run = train(tmp_path, logs)
    publisher = CheckpointPublisher(run, PublishConfig())
    assert publisher.step()[0] is not None
    train(tmp_path, logs, windows=2)
    version, _ = publisher.step()
    assert version is not None
    assert version.version == 2
    assert_newest_is_the_checkpoint(run)
    assert publisher.step() == (None, [])
    with pytest.raises(HeadraceError, match="another process publishes"):
        CheckpointPublisher(run, PublishConfig())
    publisher.close()


def test_after_a_restore_the_next_version_has_all_rows(tmp_path: Path, logs: Path) -> None:
    run = train(tmp_path, logs, windows=2)
    publish(run)
    list(restore_version(run, 1))
    publisher = CheckpointPublisher(run, PublishConfig())
    version, lines = publisher.step()
    publisher.close()
    assert version is not None, lines
    assert any("version 1 is not continued, the next one has all rows: it is not that" in line for line in lines)
    assert_newest_is_the_checkpoint(run)
    assert all(chain[0].first == 2 for (chain,) in version.chains.values())


def test_a_checkpoint_that_was_deleted_meanwhile_is_told_and_passed_over(tmp_path: Path, logs: Path) -> None:
    run = train(tmp_path, logs)
    publisher = CheckpointPublisher(run, PublishConfig())
    shutil.rmtree(run / "checkpoints" / "segments")
    version, lines = publisher.step()
    assert version is None
    assert len(lines) == 1
    assert "checkpoint 1 was not published" in lines[0]
    publisher.close()


def test_the_command_publishes_once_and_leaves_runs_that_publish_themselves(tmp_path: Path, logs: Path) -> None:
    run = train(tmp_path, logs)
    result = CliRunner().invoke(app, ["publish", str(run), "--once", "--weights", "int8"])
    assert result.exit_code == 0, result.output
    assert "version 1: step" in result.output
    folder = PublicationFolder(run / "publications")
    assert rows_at(folder, 1).keys() == rows_of_checkpoint(run).keys()
    train(tmp_path, logs, publish={})
    versions = folder.versions()
    result = CliRunner().invoke(app, ["publish", str(run), "--once", "--listen", "127.0.0.1:0"])
    assert result.exit_code == 0, result.output
    assert "publish: serving on 127.0.0.1:" in result.output
    assert folder.versions() == versions
    assert_newest_is_the_checkpoint(run)


def test_the_command_writes_parquet_deltas(tmp_path: Path, logs: Path) -> None:
    rows: dict[tuple[str, str, int], bytes] = {}
    for version in (1, 2):
        run = train(tmp_path, logs)
        result = CliRunner().invoke(app, ["publish", str(run), "--once", "--to", str(tmp_path / "out")])
        assert result.exit_code == 0, result.output
        assert f"out: version {version} of step" in result.output
        for path in sorted((tmp_path / "out" / f"{version:08d}").glob("*.parquet")):  # removed first, then rows
            section, group, _ = path.name.split(".")
            for row in pq.read_table(path).to_pylist():
                key = group, row["table"], row["id"]
                if section == "removed":
                    rows.pop(key, None)
                else:
                    rows[key] = np.float32(row["weights"]).tobytes()
    newest = PublicationFolder(run / "publications").newest()
    assert newest is not None
    names = {name: [table["name"] for table in parts[0].tables] for name, parts in newest.tables.items()}
    assert len(names) == 2  # of which tables have the same names
    expected = rows_of_checkpoint(run).items()
    assert rows == {(name, names[name][table], each): row for (name, table, each), row in expected}
    result = CliRunner().invoke(app, ["publish", str(run), "--once", "--to", "s3://bucket/rows"])
    assert "expected redis://HOST:PORT/DB or a folder" in str(result.exception)
