"""A job under a budget, with rows in files and in shards, resumes after kills with the bits of one in memory."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from headrace.cluster import train_job
from headrace.logs.generate import GenerateConfig, generate_logs
from headrace.observe.run_data import RunData
from headrace.testing.checkpoints import checkpoint_arrays
from headrace.testing.processes import running_children
from headrace.training import CheckpointFolder, JobConfig

JOB = """\
run: {run}
data: {{path: logs}}
pipeline: {{shuffle: {{num_rows: 500, seed: 3}}, workers: 1, tuner: none}}
embeddings:
  budget: 200KiB
  partitions: 2
  retention: {{kind: importance, half_life_rows: 3000, admission: 0}}
  storage: {storage}
  default: {{num_embeddings: 3000, optimizer: {{kind: rowwise_adagrad, lr: 0.05}}}}
model: {{kind: dlrm, embedding_dim: 8, bottom: [16], top: [16]}}
training:
  {{batch_size: 64, threads: 1, checkpoint_every_steps: 8, log_every_steps: 4,
   dense_optimizer: {{kind: sgd, lr: 0.05}}}}
"""
TIERED = (
    "{kind: tiered, memory: 36KiB, path: .}"  # 600 of the 1,200 rows of a shard; in one process, 300 for each partition
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    generate_logs(GenerateConfig(rows=5_000, windows=2, users=1_500, items=1_500, seed=5), tmp_path / "logs")
    for run, storage in (("plain", "memory"), ("killed", TIERED)):
        (tmp_path / f"{run}.yaml").write_text(JOB.format(run=run, storage=storage))
    return tmp_path


@pytest.mark.slow
def test_killed_shards_and_trainers_change_no_bits(folder: Path) -> None:
    log = folder / "killed.log"
    with ExitStack() as stack:
        output = stack.enter_context(log.open("w"))
        command = [sys.executable, "-m", "headrace", "launch", "killed.yaml", "--trainers=1", "--shards=2"]
        process = stack.enter_context(subprocess.Popen(command, stdout=output, stderr=output))
        stack.callback(process.kill)
        wait(process, (folder / "killed" / "checkpoints" / "00000002").exists)  # in the middle of the first window
        running_children(process.pid, "shard")[1].kill()
        wait(process, lambda: "going on from checkpoint" in log.read_text())
        number = max(CheckpointFolder(folder / "killed" / "checkpoints").numbers())
        wait(process, (folder / "killed" / "checkpoints" / f"{number + 1:08d}").exists)  # trained after the first kill
        for role in ("train", "shard"):
            running_children(process.pid, role)[0].kill()
        assert process.wait() != 0
    run = RunData.read(folder / "killed")
    tables = run.names_below("budget")
    assert tables, "expected the rows of tables in the shards"
    assert all(run.column(f"budget.{name}.rows").min() > 0 for name in tables)
    for run in ("killed", "plain"):
        train_job(JobConfig.from_file(folder / f"{run}.yaml"))
    expected, found = checkpoint_arrays(folder / "plain"), checkpoint_arrays(folder / "killed")
    assert expected.keys() == found.keys()
    assert {name for name in expected if not np.array_equal(expected[name], found[name])} == set()
    assert expected["embeddings-0.rows"].size > 1_000, "expected more rows than a shard has in memory"


def wait(process: subprocess.Popen[bytes], until: Callable[[], bool]) -> None:
    while not until():
        assert process.poll() is None
        time.sleep(0.01)
