"""A run publishes versions whose rows read as the trainer's, goes on after a stop, and repairs what a kill left."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published_rows import assert_newest_is_the_checkpoint, rows_at, rows_of_checkpoint

from headrace.errors import CheckpointError
from headrace.logs.generate import GenerateConfig, generate_logs
from headrace.publishing import writer as writing
from headrace.publishing.publications import PublicationFolder
from headrace.training import JobConfig, Trainer


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("publish") / "logs"
    generate_logs(GenerateConfig(rows=4_000, windows=3, users=1_000, items=1_000, seed=5), folder)
    return folder


@pytest.fixture(autouse=True)
def every_step_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(writer: writing.PublicationWriter) -> bool:
        if writer._writing is not None:
            writer._writing.exception()
        return True

    monkeypatch.setattr(writing.PublicationWriter, "is_idle", property(wait))


def job_of(
    folder: Path, logs: Path, publish: dict[str, Any] | None = None, every_steps: int | None = None, **embeddings: Any
) -> JobConfig:
    job = {
        "run": "run",
        "data": {"path": str(logs)},
        "model": {"kind": "deepfm", "embedding_dim": 4, "deep": [4]},
        "embeddings": {"default": {"kind": "collisionless", "num_embeddings": 64, "evict_after": 1}} | embeddings,
        "training": {
            "batch_size": 128,
            "threads": 1,
            "checkpoints": {"kind": "delta"},
            "checkpoint_every_steps": every_steps,
            "publish": {"every_s": 1e-6, **(publish or {})},
        },
    }
    return JobConfig.from_dict(job, where="job").resolve(folder)


def test_the_newest_version_has_the_rows_of_the_trainer_and_a_later_run_continues_it(
    tmp_path: Path, logs: Path
) -> None:
    for window in range(2):
        Trainer(job_of(tmp_path, logs, {"base_every": 6})).run(windows=1)
        version = assert_newest_is_the_checkpoint(tmp_path / "run")
        assert version > 9 * (window + 1)
    folder = PublicationFolder(tmp_path / "run" / "publications")
    publications = [folder.load(version) for version in folder.versions()]
    assert len({each.lineage for each in publications}) == 1
    starts = {
        entry.first
        for each in publications
        for parts in each.chains.values()
        for entry in (chain[0] for chain in parts)
    }
    assert starts == {1}  # all bases were merged from the first one
    assert any(chain[0].last > 1 for each in publications for (chain,) in each.chains.values())


def killed_after(steps: int, job: JobConfig) -> None:
    """Train until a step, at which the process dies."""
    left = steps

    def dies() -> bool:
        nonlocal left
        left -= 1
        if left < 0:
            raise RuntimeError("killed")
        return False

    with pytest.raises(RuntimeError, match="killed"):
        Trainer(job, should_stop=dies).run(windows=1)


def one_step(job: JobConfig) -> list[str]:
    """Train one step, which uses few of the ids of the steps that were forgotten; returns messages."""
    return some_steps(1, job)


def some_steps(count: int, job: JobConfig) -> list[str]:
    """Train some steps, with a checkpoint at the end; returns messages."""
    lines: list[str] = []
    left = iter(range(count - 1))
    Trainer(job, should_stop=lambda: next(left, None) is None, on_message=lines.append).run(windows=1)
    return lines


def bases_of(folder: PublicationFolder) -> set[int]:
    """The versions with which all chains begin."""
    publications = [folder.load(version) for version in folder.versions()]
    return {chain[0].first for each in publications for parts in each.chains.values() for chain in parts}


def test_after_a_kill_the_next_version_takes_forgotten_steps_back(tmp_path: Path, logs: Path) -> None:
    folder, job = PublicationFolder(tmp_path / "run" / "publications"), job_of(tmp_path, logs, {"base_every": 6})
    Trainer(job).run(windows=1)
    for steps in (3, 1, 7):  # without a checkpoint between them
        killed_after(steps, job)
    forgotten = folder.versions()[-1]
    lines = one_step(job)
    assert any(f"version {forgotten} has steps after the checkpoint" in line for line in lines), lines
    assert_newest_is_the_checkpoint(tmp_path / "run")
    assert bases_of(folder) == {1}
    repaired = folder.load(forgotten + 1)
    assert 0 < repaired.rows_changed < sum(chain[0].rows for (chain,) in repaired.chains.values())


@pytest.mark.parametrize(
    "embeddings",
    [{}, {"budget": "60KiB"}, {"default": {"kind": "hashed", "num_embeddings": 5_000}}],
    ids=["ids that come and go", "budget", "hashed"],
)
def test_after_kills_between_checkpoints_the_newest_version_is_the_checkpoint(
    tmp_path: Path, logs: Path, embeddings: dict[str, Any]
) -> None:
    folder = PublicationFolder(tmp_path / "run" / "publications")
    job, between = job_of(tmp_path, logs, **embeddings), job_of(tmp_path, logs, every_steps=3, **embeddings)
    for steps in (5, 4):
        killed_after(steps, between)
        one_step(between)
        assert_newest_is_the_checkpoint(tmp_path / "run")
    Trainer(job).run(windows=1)
    Trainer(job).run(windows=1)  # which evicts ids; killed before its checkpoint is complete, but not the version
    shutil.rmtree(max((tmp_path / "run" / "checkpoints").glob("0*")))
    one_step(job)
    assert_newest_is_the_checkpoint(tmp_path / "run")
    assert (bases_of(folder) == {1}) == ("budget" not in embeddings)


def test_a_checkpoint_after_which_its_process_published_nothing_is_followed_by_all_rows(
    tmp_path: Path, logs: Path
) -> None:
    """Nobody knows what changed between the last version of its process and the checkpoint."""
    folder, checkpoints = PublicationFolder(tmp_path / "run" / "publications"), tmp_path / "run" / "checkpoints"
    job = job_of(tmp_path, logs, {"every_s": 1e9})  # a version at the first step, and one at the end

    def resumed(name: str) -> bool:
        shutil.rmtree(checkpoints)
        shutil.copytree(tmp_path / name, checkpoints)
        lines = one_step(job)
        assert_newest_is_the_checkpoint(tmp_path / "run")
        return not any("no version of the same process was cut after the checkpoint" in line for line in lines)

    some_steps(3, job)
    shutil.copytree(checkpoints, tmp_path / "early")
    some_steps(6, job)
    folder.remove(folder.versions()[-1])  # it was killed before
    shutil.copytree(checkpoints, tmp_path / "late")
    assert not resumed("late")
    assert resumed("early")
    assert not resumed("late")  # other processes have published meanwhile


def test_a_full_disk_is_told_and_the_next_version_has_the_changes(
    tmp_path: Path, logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = writing.write_delta, 0

    def sometimes(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if 3 < calls < 7 or calls == 1:
            raise CheckpointError("segments/x: cannot be written: No space left on device")
        return write(*args, **options)

    monkeypatch.setattr(writing, "write_delta", sometimes)
    lines: list[str] = []
    Trainer(job_of(tmp_path, logs), on_message=lines.append).run(windows=2)
    assert calls > 7
    assert any("was not published, the next one has its changes" in line and "No space left" in line for line in lines)
    assert_newest_is_the_checkpoint(tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "decisions.jsonl").read_text().splitlines()]
    reasons = [record["reason"] for record in records if record["who"] == "publishing"]
    assert any(reason.endswith("; 0 were late, 4 failed") for reason in reasons)


def test_rows_under_a_budget_lose_and_get_rows(tmp_path: Path, logs: Path) -> None:
    Trainer(job_of(tmp_path, logs, budget="60KiB", default={"kind": "collisionless"})).run(windows=2)
    assert_newest_is_the_checkpoint(tmp_path / "run")


def test_int8_rows_are_within_their_bound(tmp_path: Path, logs: Path) -> None:
    Trainer(job_of(tmp_path, logs, {"weights": "int8", "base_every": 3})).run(windows=2)
    folder = PublicationFolder(tmp_path / "run" / "publications")
    ours, theirs = rows_at(folder, folder.versions()[-1]), rows_of_checkpoint(tmp_path / "run")
    assert ours.keys() == theirs.keys()
    for key, row in ours.items():
        exact = np.frombuffer(theirs[key], np.float32)
        assert np.abs(np.frombuffer(row, np.float32) - exact).max() <= np.abs(exact).max() / 252
