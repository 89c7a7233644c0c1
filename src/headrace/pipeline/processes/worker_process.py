"""`WorkerProcess`: a separate process that applies transformations, and how user functions are sent to it.

Functions are sent by name where the process can import them, else by value.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import cloudpickle
import pyarrow as pa

from headrace.errors import ConfigError
from headrace.lifeline import Lifeline
from headrace.pipeline.processes.messages import Disconnected, receive, send
from headrace.pipeline.processes.worker_main import STACK_SIGNAL
from headrace.pipeline.processes.worker_template import fork_worker
from headrace.pipeline.transformations.chain import StageFault
from headrace.pipeline.transformations.transformation import Transformation

__all__ = ["WorkerProcess", "ship"]

GRACE_S = 1.0
"""Seconds a worker may take to exit after its connection is closed."""

STACK_PATIENCE_S = 1.0
"""Seconds a stuck worker may take to write its stack; faulthandler needs milliseconds unless the machine swaps."""


class WorkerProcess:
    """A running worker and the connection to it."""

    def __init__(self, shipped: bytes) -> None:
        """Start the process and send it the functions, without waiting until it has loaded them.

        Raises:
            OSError: The process cannot be started.
        """
        self._connection, theirs = socket.socketpair()
        self._lifeline = Lifeline()
        self._stack = tempfile.TemporaryFile()  # noqa: SIM115 - closed in stop()
        try:
            self._process = fork_worker((theirs.fileno(), self._lifeline.child_file, self._stack.fileno()))
        except OSError:
            for file in (self._connection, self._stack):
                file.close()
            self._lifeline.close()
            raise
        finally:
            theirs.close()
            self._lifeline.release()
        with suppress(Disconnected):  # noticed again, and reported, by `wait_until_ready`
            send(self._connection, shipped)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def wait_until_ready(self) -> StageFault | None:
        """Wait until the functions are loaded; returns the fault if loading failed, else None.

        Raises:
            Disconnected: The process died.
        """
        fault: StageFault | None = receive(self._connection)[0]
        return fault

    def call(self, control: Any, rows: pa.RecordBatch, timeout_s: float | None) -> tuple[Any, pa.RecordBatch | None]:
        """Send an element to a ready worker and wait for the result.

        Args:
            control: Values sent with the rows.
            rows: The element's rows.
            timeout_s: Maximum seconds for the functions, or None.

        Raises:
            Disconnected: The process died.
            TimeoutError: There was no result in time.
        """
        self._connection.settimeout(timeout_s)
        send(self._connection, control, rows)
        return receive(self._connection)

    def stack(self) -> str:
        """The current stack of the process."""
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
        # faulthandler prints the most recent call first, a traceback prints it last.
        return "\n".join(reversed([line for line in text.splitlines() if "File" in line]))

    def disconnect(self) -> None:
        """Ask the process to exit, and wake any thread waiting for it."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def stop(self, grace_s: float = GRACE_S) -> str:
        """Stop the process, by force if it does not exit within `grace_s` seconds; returns how it ended."""
        self.disconnect()
        try:
            self._process.wait(grace_s)
        except TimeoutError:
            self._process.send_signal(signal.SIGKILL)
        self._connection.close()
        self._lifeline.close()
        self._stack.close()
        return describe_exit(self._process.wait())


def describe_exit(returncode: int | None) -> str:
    """Describe how a process ended."""
    if returncode is None:
        return "ended with an unknown status, because the process that forked it had died"
    if returncode >= 0:
        return f"exited with status {returncode}"
    name = signal.Signals(-returncode).name
    hint = ", which the kernel does when memory runs out" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"


def ship(name: str, transformations: Sequence[Transformation]) -> bytes:
    """Pickle transformations for a worker process.

    Args:
        name: Name of their stages, for error messages.
        transformations: Transformations for the worker to apply.

    Raises:
        ConfigError: A function refers to something that cannot leave this process; the message names it.
    """
    try:
        if not any(_is_from_main(transformation) for transformation in transformations):
            return pickle.dumps(transformations)
    except (pickle.PicklingError, AttributeError, TypeError):
        pass  # a lambda, or a function inside another
    try:
        shipped: bytes = cloudpickle.dumps(transformations)
    except Exception as error:
        raise ConfigError(
            f"stage {name}: cannot send its function to a worker process: {error}; "
            "it refers to something that cannot be copied, such as a lock or an open file"
        ) from error
    return shipped


def _is_from_main(transformation: Any) -> bool:
    function: Callable[..., Any] | None = getattr(transformation, "function", None)
    function = function or getattr(transformation, "predicate", None)
    while isinstance(function, partial):
        function = function.func
    return getattr(function, "__module__", None) == "__main__" or type(function).__module__ == "__main__"
