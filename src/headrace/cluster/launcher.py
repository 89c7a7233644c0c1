"""`launch`: starts the shards and trainers of a job on this machine and supervises them."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from headrace.cluster.private_folder import private_folder
from headrace.cluster.rendezvous import RENDEZVOUS_VARIABLE
from headrace.cluster.shards import READY
from headrace.cluster.training import SHARDS_VARIABLE
from headrace.embeddings.shards.security import TOKEN_VARIABLE
from headrace.embeddings.storage.config import StorageConfig
from headrace.errors import HeadraceError
from headrace.lifeline import LIFELINE_VARIABLE, Lifeline

__all__ = ["LaunchOptions", "launch"]

HEADRACE = (sys.executable, "-P", "-m", "headrace")
"""-P prevents files in the working folder from shadowing libraries."""
LOOPBACK = "127.0.0.1"
POLL_S = 0.1
START_S = 120.0
"""Seconds a shard may take to report its address: it imports torch, possibly on a busy machine."""
GRACE_S = 60.0
"""Seconds trainers may take to write a checkpoint and exit after a signal."""


@dataclass(frozen=True)
class LaunchOptions:
    """Processes to start.

    Attributes:
        trainers: Number of trainer processes.
        shards: Number of shard processes; at least one with several trainers.
        max_restarts: Maximum number of shard restarts, in total.
        arguments: Arguments of `headrace train` after the job file.
        storage: Where the shards keep rows.
    """

    trainers: int = 1
    shards: int = 1
    max_restarts: int = 3
    arguments: tuple[str, ...] = ()
    storage: StorageConfig = field(default_factory=StorageConfig)


@dataclass
class _Process:
    name: str
    command: list[str]
    environment: dict[str, str]
    on_message: Callable[[str], None]
    handle: subprocess.Popen[str] = field(init=False)
    address: str | None = None
    _heard: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Start the process; each line of its output is prefixed with its name."""
        self._heard.clear()
        self._lifeline = Lifeline()
        try:
            self.handle = subprocess.Popen(
                self.command,
                env=self.environment | {LIFELINE_VARIABLE: str(self._lifeline.child_file)},
                pass_fds=[self._lifeline.child_file],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,  # we forward Ctrl-C, once
            )
        finally:
            self._lifeline.release()
        self._reader = threading.Thread(target=self._read, args=(self.handle,), name=self.name, daemon=True)
        self._reader.start()

    def _read(self, handle: subprocess.Popen[str]) -> None:
        assert handle.stdout is not None
        for line in handle.stdout:
            if line.startswith(READY):
                self.address = line.removeprefix(READY).strip()
                self._heard.set()
            with suppress(OSError):  # nobody reads the output any more, but the process must not block on a full pipe
                self.on_message(f"{self.name} | {line.rstrip()}")
        self._heard.set()

    def wait_for_address(self) -> str:
        """Wait until a shard serves; returns its address."""
        self._heard.wait(START_S)
        if self.address is None:
            raise HeadraceError(f"{self.name} (process {self.handle.pid}) did not start; see its output above")
        return self.address

    def signal(self, number: int) -> None:
        """Forward a signal if the process still runs."""
        if self.handle.poll() is None:
            self.handle.send_signal(number)

    def end(self) -> None:
        """Kill the process if it still runs, and release its resources."""
        if self.handle.poll() is None:
            self.handle.kill()
        self.handle.wait()
        self._reader.join(timeout=5.0)
        if self.handle.stdout is not None:
            self.handle.stdout.close()
        self._lifeline.close()


def launch(
    job: Path,
    run: Path,
    options: LaunchOptions,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    on_message: Callable[[str], None] = print,
) -> int:
    """Run a job with several processes on this machine until all trainers have exited.

    If a shard dies, it is restarted at the same address, and trainers resume from their newest checkpoint. If a trainer
    dies, the others are stopped too; start the run again to resume from the newest checkpoint.

    Args:
        job: Job file.
        run: The run's folder.
        options: The processes to start.
        should_stop: Polled; once it returns True, trainers are asked to stop with a checkpoint.
        on_message: Called with each output line of each process, prefixed with its name.

    Returns:
        The trainers' exit code: 0, or the first nonzero one.

    Raises:
        HeadraceError: A shard does not start, or exceeds the restart limit.
    """
    # Shards serve only this run's trainers. Other users can see command lines, but not the environment.
    environment = dict(os.environ) | {TOKEN_VARIABLE: secrets.token_urlsafe(32)}
    shards = [
        _Process(f"shard-{number}", _shard_command(run, f"{LOOPBACK}:0", options.storage), environment, on_message)
        for number in range(options.shards)
    ]
    trainers: list[_Process] = []
    with private_folder() as private:
        try:
            for shard in shards:
                shard.start()
            for shard in shards:
                # Restarts use the same address.
                shard.command = _shard_command(run, shard.wait_for_address(), options.storage)
            meeting = _meeting([shard.address or "" for shard in shards], options.trainers, private)
            trainers = _trainers(job, environment | meeting, options, on_message)
            for trainer in trainers:
                trainer.start()
            return _see_through(shards, trainers, options.max_restarts, should_stop, on_message)
        finally:
            for process in [*trainers, *shards]:
                if hasattr(process, "handle"):
                    process.end()


def _see_through(
    shards: Sequence[_Process],
    trainers: Sequence[_Process],
    restarts: int,
    should_stop: Callable[[], bool],
    on_message: Callable[[str], None],
) -> int:
    told_s: float | None = None
    while True:
        codes = [trainer.handle.poll() for trainer in trainers]
        failed = next((code for code in codes if code), None)
        if all(code is not None for code in codes):
            return failed or 0
        if failed is not None and failed != 130:  # the others cannot continue without it
            name = trainers[codes.index(failed)].name
            on_message(f"launch | {name} ended with code {failed}; stopping the others")
            return failed
        if told_s is None and should_stop():
            told_s = time.monotonic()
            for trainer in trainers:
                trainer.signal(signal.SIGTERM)
        if told_s is not None and time.monotonic() - told_s > GRACE_S:
            on_message(f"launch | trainers did not end within {GRACE_S:g} s; killing them")
            return 130
        for shard in shards:
            if shard.handle.poll() is not None:
                if restarts == 0:
                    raise HeadraceError(
                        f"{shard.name} ended with code {shard.handle.returncode} and has no restarts left"
                    )
                restarts -= 1
                on_message(f"launch | {shard.name} ended with code {shard.handle.returncode}; restarting it")
                shard.end()
                shard.start()
        time.sleep(POLL_S)


def _shard_command(run: Path, listen: str, storage: StorageConfig) -> list[str]:
    command = [*HEADRACE, "shard", "--listen", listen, "--checkpoints", str(run / "checkpoints")]
    for name, value in storage.changed().items():
        command += ["--storage" if name == "kind" else f"--storage-{name}", str(value)]
    return command


def _meeting(shards: list[str], num_trainers: int, private: Path) -> dict[str, str]:
    """Environment variables through which trainers find shards and each other."""
    meeting = {"WORLD_SIZE": str(num_trainers), RENDEZVOUS_VARIABLE: str(private / "trainers")}
    return meeting | ({SHARDS_VARIABLE: ",".join(shards)} if shards else {})


def _trainers(
    job: Path, environment: dict[str, str], options: LaunchOptions, on_message: Callable[[str], None]
) -> list[_Process]:
    command = [*HEADRACE, "train", str(job), *options.arguments]
    return [
        _Process(f"trainer-{rank}", command, environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, on_message)
        for rank in range(options.trainers)
    ]
