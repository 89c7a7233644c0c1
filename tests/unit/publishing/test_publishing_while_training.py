"""A run publishes versions whose rows read as the trainer's, goes on after a stop, and repairs what a kill left."""

import json
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


def job_of(folder: Path, logs: Path, publish: dict[str, Any] | None = None, **embeddings: Any) -> JobConfig:
    job = {
        "run": "run",
        "data": {"path": str(logs)},
        "model": {"kind": "deepfm", "embedding_dim": 4, "deep": [4]},
        "embeddings": {"default": {"kind": "collisionless", "num_embeddings": 64, "evict_after": 1}} | embeddings,
        "training": {
            "batch_size": 128,
            "threads": 1,
            "checkpoints": {"kind": "delta"},
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


def test_after_a_kill_the_next_version_has_all_rows(tmp_path: Path, logs: Path) -> None:
    steps = 0

    def dies() -> bool:
        nonlocal steps
        steps += 1
        if steps > 3:
            raise RuntimeError("killed")
        return False

    Trainer(job_of(tmp_path, logs)).run(windows=1)
    first = assert_newest_is_the_checkpoint(tmp_path / "run")
    with pytest.raises(RuntimeError, match="killed"):
        Trainer(job_of(tmp_path, logs), should_stop=dies).run(windows=1)
    folder = PublicationFolder(tmp_path / "run" / "publications")
    forgotten = folder.versions()[-1]
    assert forgotten > first
    lines: list[str] = []
    Trainer(job_of(tmp_path, logs), on_message=lines.append).run(windows=1)
    assert any(f"version {forgotten} is not continued" in line for line in lines)
    assert_newest_is_the_checkpoint(tmp_path / "run")
    after = folder.load(forgotten + 1)
    assert all(chain[0].first == forgotten + 1 for (chain,) in after.chains.values())


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
