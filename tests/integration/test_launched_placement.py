"""Several trainers that keep rows end with the bits of trainers that read and update shards in every step, also if a
shard and a trainer are killed, and if their number changes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from forks import Forks, forks
from test_launch import (
    kill_a_shard,
    kill_a_trainer,
    parameters,
    start_shards,
    wait_for_the_first_checkpoint,
    write_job,
)

from headrace.cluster import train_job
from headrace.cluster.rendezvous import RENDEZVOUS_VARIABLE
from headrace.cluster.training import SHARDS_VARIABLE
from headrace.embeddings.shards.service import ShardServer
from headrace.logs.generate import GenerateConfig, generate_logs
from headrace.training import JobConfig

DEEPFM = "{kind: deepfm, embedding_dim: 8, deep: [16]}"
"""A model with two table groups, whose messages are kept apart."""

LOOKAHEAD = "{policy: lookahead, memory: 60KiB, window: 4, verify: true}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launched")
    generate_logs(GenerateConfig(rows=6_150, windows=2, users=300, items=200, seed=5), folder / "logs")
    return folder


def train_first_window_with_two_trainers(forked: Forks, folder: Path, run: str) -> None:
    log, meeting = folder / f"{run}.log", folder / f"{run}.trainers"
    for rank in range(2):
        variables = {"WORLD_SIZE": "2", "RANK": str(rank), RENDEZVOUS_VARIABLE: str(meeting)}
        variables[SHARDS_VARIABLE] = os.environ[SHARDS_VARIABLE]
        forked.command(["train", str(folder / f"{run}.yaml"), "--windows=1"], log, **variables)
    assert forked.wait() == [0, 0], log.read_text()


def assert_same(folder: Path, run: str, other: str) -> None:
    expected, found = parameters(folder / run), parameters(folder / other)
    assert expected.keys() == found.keys()
    assert {name for name in expected if not np.array_equal(expected[name], found[name])} == set()


@pytest.mark.slow
def test_a_killed_shard_a_killed_trainer_and_fewer_trainers_change_no_bits(
    folder: Path, shards: list[ShardServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    for run, placement in (("plain", "none"), ("kept", LOOKAHEAD)):
        write_job(folder, run, 32, placement)
        job = folder / f"{run}.yaml"
        job.write_text(job.read_text().replace("{kind: dlrm, embedding_dim: 8, bottom: [16], top: [16]}", DEEPFM))
    command = [sys.executable, "-m", "headrace", "launch", str(folder / "kept.yaml"), "--trainers=2", "--shards=2"]
    with ExitStack() as stack:
        log = stack.enter_context((folder / "kept.log").open("w"))
        process = stack.enter_context(subprocess.Popen([*command, "--windows=1"], stdout=log, stderr=log))
        stack.callback(process.kill)
        wait_for_the_first_checkpoint(process, folder / "kept" / "checkpoints")
        kill_a_shard(process)
        wait_for(process, folder / "kept.log", "going on from checkpoint")
        kill_a_trainer(process)
        assert process.wait() != 0
    text = (folder / "kept.log").read_text()
    assert "shard-1 ended with code -9; restarting it" in text
    assert "ended with code -9; stopping the others" in text
    with forks() as forked:
        for run, count in (("plain", 1), ("kept", 2)):
            start_shards(shards, folder / run / "checkpoints", 1, monkeypatch)
            train_first_window_with_two_trainers(forked, folder, run)
            start_shards(shards, folder / run / "checkpoints", count, monkeypatch)
            train_job(JobConfig.from_file(folder / f"{run}.yaml"))
    assert_same(folder, "plain", "kept")
    assert "at another trainer" in (folder / "kept" / "decisions.jsonl").read_text()


def wait_for(process: subprocess.Popen[bytes], log: Path, text: str) -> None:
    while text not in log.read_text():
        assert process.poll() is None
        time.sleep(0.01)
