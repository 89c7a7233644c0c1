"""No process outlives the one that started it, however that one ends."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from headrace.cluster.private_folder import private_folder
from headrace.logs.generate import GenerateConfig, generate_logs
from headrace.testing.processes import still_running

PATIENCE_S = 120.0
"""Only a failure takes it."""

needs_pidfd = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits for processes by Linux's pidfd")
pytestmark = needs_pidfd

JOB = """\
run: run
data: {path: logs}
embeddings: {default: {kind: hashed, num_embeddings: 300}}
model: {kind: dlrm, embedding_dim: 8, bottom: [16], top: [16]}
training: {batch_size: 4, threads: 1, checkpoint_every_steps: 10}
"""

IN_WORKERS = """
import os, threading, time
from functools import partial
from headrace.pipeline import from_source
from headrace.testing.functions import never_return
from headrace.testing.pipelines import SyntheticSource

def fork_once_a_worker_works():
    while not os.path.exists({flag!r}):
        time.sleep(0.01)
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        time.sleep(3600)

if __name__ == "__main__":
    stuck = partial(never_return, flag={flag!r})
    pipe = from_source(SyntheticSource([[(5, 0, 0)]] * 100)).map(stuck, executor="process")
    with pipe.open(workers=2) as batches:
        {fork}
        next(batches)
"""


@contextmanager
def program(command: list[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A program whose lines can be read, and whose temporary files lie in its folder; killed at the end."""
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    environment = {**os.environ, "TMPDIR": str(folder)}
    process = subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, **pipes)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Look again and again, until it has happened or the program has ended."""
    poll = select.poll()
    while not happened():
        poll.poll(10)
        assert process.poll() is None


def test_trainers_and_shards_end_when_their_launcher_is_killed_and_the_next_one_cleans_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate_logs(GenerateConfig(rows=20_000, windows=1, users=300, items=200, seed=5), tmp_path / "logs")
    (tmp_path / "job.yaml").write_text(JOB)
    command = [sys.executable, "-m", "headrace", "launch", "job.yaml", "--trainers=2", "--shards=2"]
    with program(command, tmp_path) as launcher:
        wait_until((tmp_path / "run/checkpoints/00000001").exists, launcher)
        children = psutil.Process(launcher.pid).children(recursive=True)
        for child in children:
            child.suspend()  # the kernel ends them: nothing they do themselves, such as ending a job, counts
        assert len(children) == 4
        assert still_running(children, launcher.kill) == []
    (left,) = tmp_path.glob("headrace-launch-*")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with private_folder():  # as the next launcher
        assert not left.exists()


@pytest.mark.parametrize("forks", [False, True])
def test_worker_processes_and_their_template_end_when_the_training_process_is_killed(
    tmp_path: Path, forks: bool
) -> None:
    """Also where a fork of that process lives on, which shares its open files."""
    flag = tmp_path / "in the function"
    fork = "threading.Thread(target=fork_once_a_worker_works, daemon=True).start()" if forks else "pass"
    (tmp_path / "train.py").write_text(IN_WORKERS.format(flag=str(flag), fork=fork))
    with program([sys.executable, "-W", "ignore", "train.py"], tmp_path) as trainer:
        assert trainer.stdout is not None
        other = psutil.Process(int(trainer.stdout.readline())) if forks else None
        wait_until(flag.exists, trainer)
        children = [child for child in psutil.Process(trainer.pid).children(recursive=True) if child != other]
        left = still_running(children, trainer.kill)
        if other is not None:
            other.kill()
        assert len(children) >= 2
        assert left == []


def test_processes_that_compile_end_when_warmup_is_killed(tmp_path: Path) -> None:
    with program([sys.executable, "-m", "headrace", "warmup"], tmp_path) as warmup:

        def compiling() -> list[psutil.Process]:
            return [each for each in psutil.Process(warmup.pid).children() if "spawn_main" in " ".join(each.cmdline())]

        wait_until(lambda: bool(compiling()), warmup)
        assert still_running(compiling(), warmup.kill) == []


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_shard_ends_when_its_terminal_closes(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "headrace", "shard", "--checkpoints", str(tmp_path)]
    with program(command, tmp_path) as shard:
        assert shard.stdout is not None
        assert shard.stdout.readline().startswith("shard: serving on ")
        shard.send_signal(number)
        assert shard.wait(PATIENCE_S) == 0


def test_a_process_that_nobody_reaps_has_ended() -> None:
    with subprocess.Popen(["sleep", "3600"]) as sleeper:
        assert still_running([psutil.Process(sleeper.pid)], sleeper.kill) == []
        assert psutil.Process(sleeper.pid).status() == psutil.STATUS_ZOMBIE


def test_a_process_that_does_not_end_is_named_and_killed() -> None:
    command = ["sh", "-c", "echo started; read line"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        reader.stdout.readline()  # a process that is still being started has no command line yet
        assert still_running([psutil.Process(reader.pid)], lambda: None, timeout_s=0.0) == [command]
        assert reader.wait() == -signal.SIGKILL
