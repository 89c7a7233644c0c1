"""`WorkerProcess`: a process of its own that applies transformations, and how user functions get there.

Functions travel by name where the process can import them, else by value.
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
"""How long a worker may take to end by itself when its connection is closed."""

STACK_PATIENCE_S = 1.0
"""How long a stuck worker may take to write its stack; faulthandler needs milliseconds unless the machine swaps."""


class WorkerProcess:
    """A started worker and the connection to it."""

    def __init__(self, shipped: bytes) -> None:
        """Start it and send it the functions, which it has yet to load.

        Raises:
            OSError: It cannot be started.
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
        except TimeoutError:
            self._process.send_signal(signal.SIGKILL)
        self._connection.close()
        self._lifeline.close()
        self._stack.close()
        return describe_exit(self._process.wait())


def describe_exit(returncode: int | None) -> str:
    """How a process ended, in words."""
    if returncode is None:
        return "ended, nobody knows how: the process that forked it had died before"
    if returncode >= 0:
        return f"ended by itself with status {returncode}"
    name = signal.Signals(-returncode).name
    hint = ", as the kernel does when memory runs out" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"


def ship(name: str, transformations: Sequence[Transformation]) -> bytes:
    """Some transformations, to be loaded with pickle by a worker process.

    Args:
        name: Of their stages, for errors.
        transformations: To be applied there.

    Raises:
        ConfigError: A function holds something that belongs to this process; names it.
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
