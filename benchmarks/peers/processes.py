"""`Process`: starts an arm in a separate process, sends it commands, and returns its answers."""

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
    """The process of an arm ended or did not answer in time; the message is the last line of its standard error."""


class Process:
    """The process of an arm; idle between commands, so that arms can be measured in turn."""

    def __init__(self, module: str, *arguments: str) -> None:
        """Start `python -m module arguments`, without waiting until it is ready."""
        # Importing headrace here has set how OpenMP threads wait; each arm must decide this for itself.
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
        """Process id."""
        return self._child.pid

    def ask(self, command: str, timeout_s: float = PASS_TIMEOUT_S) -> dict[str, Any]:
        """Send a command (one line) and return the answer.

        Raises:
            ArmFailed: The process ended or did not answer in time.
        """
        self.wait_ready()
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(f"{command}\n".encode())
            self._child.stdin.flush()
        except BrokenPipeError:
            raise ArmFailed(self._last_error_line()) from None
        return self._answer(timeout_s)

    def wait_ready(self) -> None:
        """Wait until the process has imported its library and can take commands.

        Raises:
            ArmFailed: The process ended or did not get ready in time.
        """
        if not self._ready:
            self._answer(START_TIMEOUT_S)
            self._ready = True

    def close(self) -> None:
        """Close the input of the process and wait until it ends; kill it if it does not."""
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
            raise ArmFailed(self._last_error_line() if ready else f"no answer within {timeout_s:.0f} s")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_error_line(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "the process ended without a message"


def loader_process(arm: Arm, logs: Logs, op: IdOp) -> Process:
    """Start the process of an arm of the loader benchmarks."""
    return Process("peers.child", arm.name, str(logs.folder), str(logs.num_rows), op)
