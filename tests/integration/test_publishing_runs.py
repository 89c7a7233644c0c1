"""Runs with shards publish the rows of all shards, and a run that is killed repairs what it published."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from headrace.embeddings.shards.service import ShardServer
from headrace.embeddings.shards.shard import Shard
from headrace.logs.generate import GenerateConfig, generate_logs
from headrace.publishing.publications import PublicationFolder
from headrace.training import CheckpointFolder, JobConfig, Trainer

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "publishing"))
from published_rows import assert_newest_is_the_checkpoint

JOB = """\
run: run
data: {{path: logs}}
model: {{kind: deepfm, embedding_dim: 4, deep: [4]}}
embeddings: {{default: {{kind: collisionless, num_embeddings: 64, evict_after: 1}}}}
training:
  {{batch_size: {batch_size}, threads: 1, checkpoints: {{kind: delta}}, checkpoint_every_steps: 40,
   publish: {{every_s: {every_s}}}}}
cluster: {{shards: {shards}}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    generate_logs(GenerateConfig(rows=6_000, windows=3, users=1_500, items=1_500, seed=5), tmp_path / "logs")
    return tmp_path


@pytest.fixture
def shards(folder: Path) -> Iterator[list[str]]:
    with ExitStack() as stack:
        servers = [ShardServer(Shard(checkpoints=folder / "run" / "checkpoints"), "127.0.0.1:0") for _ in range(2)]
        for server in servers:
            stack.callback(server.shutdown)
        yield [f"127.0.0.1:{server.port}" for server in servers]


def test_rows_of_shards_are_published_and_a_later_run_continues(folder: Path, shards: list[str]) -> None:
    (folder / "job.yaml").write_text(JOB.format(batch_size=256, shards=shards, every_s=0.001))
    for _ in range(2):
        Trainer(JobConfig.from_file(folder / "job.yaml")).run(windows=1)
        assert_newest_is_the_checkpoint(folder / "run")
    publications = PublicationFolder(folder / "run" / "publications")
    newest = publications.newest()
    assert newest is not None
    assert all(len(parts) == 2 for parts in newest.chains.values())
    assert all(chain[0].first == 1 for parts in newest.chains.values() for chain in parts)


def test_steps_that_a_kill_takes_back_are_taken_back_from_readers(folder: Path) -> None:
    (folder / "job.yaml").write_text(JOB.format(batch_size=16, shards=[], every_s=0.001))
    publications = PublicationFolder(folder / "run" / "publications")
    checkpoints = CheckpointFolder(folder / "run" / "checkpoints")
    command = [sys.executable, "-m", "headrace", "train", "job.yaml"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while not is_ahead(publications, checkpoints):
                assert process.poll() is None, "it ended before it published a step after a checkpoint"
                time.sleep(0.005)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    before = publications.versions()[-1]
    (folder / "job.yaml").write_text(JOB.format(batch_size=16, shards=[], every_s=1.0))
    lines: list[str] = []
    Trainer(JobConfig.from_file(folder / "job.yaml"), on_message=lines.append).run(windows=1)
    assert any(f"version {before} has steps after the checkpoint" in line for line in lines), lines
    assert assert_newest_is_the_checkpoint(folder / "run") > before
    after = publications.load(before + 1)
    assert all(chain[0].first == 1 for parts in after.chains.values() for chain in parts)


def is_ahead(publications: PublicationFolder, checkpoints: CheckpointFolder) -> bool:
    """Whether there are a checkpoint and a later version."""
    numbers, newest = checkpoints.numbers(), publications.newest()
    if not numbers or newest is None:
        return False
    manifest, _ = checkpoints.read_manifest(numbers[-1])
    return newest.step > manifest.content["state"]["step"] + 5
