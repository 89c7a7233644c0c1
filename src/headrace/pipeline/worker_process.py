"""`WorkerProcess`: a fresh interpreter that applies the functions of some stages, and the connection to it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from typing import Any

import pyarrow as pa

from headrace.pipeline.chain import StageFault
from headrace.pipeline.messages import Disconnected, receive, send
from headrace.pipeline.worker_main import STACK_SIGNAL

__all__ = ["WorkerProcess"]

GRACE_S = 1.0
"""How long a worker may take to end by itself when its connection is closed."""

STACK_PATIENCE_S = 1.0
"""How long a stuck worker may take to write its stack; faulthandler needs milliseconds unless the machine swaps."""

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
"""Environment of a worker: many of them run side by side."""


class WorkerProcess:
    """A started worker and the connection to it."""

    def __init__(self, shipped: bytes) -> None:
        """Start an interpreter and send it the functions; it is a second or so until it is ready."""
        self._connection, theirs = socket.socketpair()
        lifeline, self._lifeline = os.pipe()
        self._stack = tempfile.TemporaryFile()  # noqa: SIM115 - closed in stop()
        files = (theirs.fileno(), lifeline, self._stack.fileno())
        code = f"import sys; sys.path[:] = {sys.path!r}; from headrace.pipeline.worker_main import main; main{files}"
        # Ctrl-C reaches every process of the terminal; this one is ended by us. A blocked signal is inherited.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=files,
                stdin=subprocess.DEVNULL,
                env={**ONE_THREAD, **os.environ},
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
            os.close(lifeline)
        with suppress(Disconnected):  # seen again, and reported, when it should get ready
            send(self._connection, shipped)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def wait_until_ready(self) -> StageFault | None:
        """Wait until the functions are loaded; returns why they cannot be.

        Raises:
            Disconnected: The process died.
        """
        fault: StageFault | None = receive(self._connection)[0]
        return fault

    def call(self, control: Any, rows: pa.RecordBatch, timeout_s: float | None) -> tuple[Any, pa.RecordBatch | None]:
        """Send an element to a worker that is ready, and wait for the result.

        Args:
            control: What goes with the rows.
            rows: The element's rows.
            timeout_s: For the functions.

        Raises:
            Disconnected: The process died.
            TimeoutError: There was no result in time.
        """
        self._connection.settimeout(timeout_s)
        send(self._connection, control, rows)
        return receive(self._connection)

    def stack(self) -> str:
        """Where the process is, as it says itself."""
        with suppress(ProcessLookupError):
            self._process.send_signal(STACK_SIGNAL)
        deadline = time.monotonic() + STACK_PATIENCE_S
        size = 0
        while time.monotonic() < deadline:
            time.sleep(0.02)
            before, size = size, os.fstat(self._stack.fileno()).st_size
            if size and size == before:
                break
        text = os.pread(self._stack.fileno(), 1 << 16, 0).decode(errors="replace")
        # faulthandler writes the most recent call first, a traceback last.
        return "\n".join(reversed([line for line in text.splitlines() if "File" in line]))

    def disconnect(self) -> None:
        """Ask the process to end, and wake whoever waits for it."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def stop(self, grace_s: float = GRACE_S) -> str:
        """End the process, by force if it does not within `grace_s`; says how it ended."""
        self.disconnect()
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._connection.close()
        with suppress(OSError):
            os.close(self._lifeline)
        self._stack.close()
        return describe_exit(self._process.returncode)


def describe_exit(returncode: int) -> str:
    """How a process ended, in words."""
    if returncode >= 0:
        return f"ended by itself with status {returncode}"
    name = signal.Signals(-returncode).name
    hint = ", as the kernel does when memory runs out" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"
