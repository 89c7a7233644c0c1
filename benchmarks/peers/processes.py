"""`Process`: an arm that runs in a process of its own, seen from the benchmark."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Self

from peers.arms import Arm
from peers.data import Logs
from peers.work import IdOp

__all__ = ["ArmFailed", "Process", "loader_process"]

START_TIMEOUT_S = 120.0
PASS_TIMEOUT_S = 300.0


class ArmFailed(Exception):
    """An arm's process ended or did not answer; says the end of what it printed."""


class Process:
    """An arm's process; idle between questions, so that arms can be measured in turn."""

    def __init__(self, module: str, *arguments: str) -> None:
        """Start `python -m module arguments`, without waiting until it is ready."""
        # An arm decides itself how OpenMP's threads wait; a headrace imported here has set it for this process.
        environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed in close)
        self._ready = False
        self._child = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=Path(__file__).parent.parent,
            env={**environment, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._child.pid

    def ask(self, question: str) -> dict[str, Any]:
        """Send a line, wait for the answer.

        Raises:
            ArmFailed: It did not come.
        """
        self.wait_ready()
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(f"{question}\n".encode())
            self._child.stdin.flush()
        except BrokenPipeError:
            raise ArmFailed(self._last_words()) from None
        return self._answer(PASS_TIMEOUT_S)

    def wait_ready(self) -> None:
        """Wait until it has imported its library.

        Raises:
            ArmFailed: It could not.
        """
        if not self._ready:
            self._answer(START_TIMEOUT_S)
            self._ready = True

    def close(self) -> None:
        """End it."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.close()
        try:
            self._child.wait(20)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child.stdout.close()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        assert self._child.stdout is not None
        deadline = time.monotonic() + timeout_s
        ready, _, _ = select.select([self._child.stdout], [], [], max(0.0, deadline - time.monotonic()))
        line = self._child.stdout.readline() if ready else b""
        if not line:
            raise ArmFailed(self._last_words() if ready else f"no answer within {timeout_s:.0f} s")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "it ended without a word"


def loader_process(arm: Arm, logs: Logs, op: IdOp) -> Process:
    """The process of an arm of the loader benchmarks."""
    return Process("peers.child", arm.name, str(logs.folder), str(logs.num_rows), op)
