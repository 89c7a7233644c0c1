"""`ProcessRunner`: applies stages in worker processes, for user functions that hold the GIL.

A thread of the pipeline waits for each busy process (without the GIL). A process that dies is replaced, and the
element it was working on is given to the new one, once. A process that takes too long is asked for its stack and
ended. Workers are started with a fresh interpreter, never forked.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pyarrow as pa

from headrace.errors import PipelineError
from headrace.logs.pieces import Source
from headrace.pipeline.chain import ChainResult, StageFault, StageUse
from headrace.pipeline.decisions import Decisions
from headrace.pipeline.delivery import apply_result, describe_element, pipeline_error
from headrace.pipeline.elements import Element
from headrace.pipeline.messages import Disconnected, receive, send
from headrace.pipeline.options import Group
from headrace.pipeline.shipping import ship
from headrace.pipeline.stuck import stuck_error
from headrace.pipeline.worker_main import STACK_SIGNAL

__all__ = ["ProcessRunner"]

GRACE_S = 1.0
"""How long a worker may take to end by itself when its connection is closed."""

STACK_PATIENCE_S = 1.0
"""How long a stuck worker may take to write its stack; faulthandler needs milliseconds unless the machine swaps."""

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
"""Environment of a worker: many of them run side by side."""


class WorkerProcess:
    """A started worker and the connection to it."""

    def __init__(self, shipped: bytes) -> None:
        """Start an interpreter and send it the functions."""
        self._is_ready = False
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
        with suppress(Disconnected):  # seen again, and reported, when it is called
            send(self._connection, shipped)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def call(self, control: Any, rows: pa.RecordBatch, timeout_s: float | None) -> tuple[Any, pa.RecordBatch | None]:
        """Send an element and wait for the result.

        Args:
            control: What goes with the rows.
            rows: The element's rows.
            timeout_s: For the functions; starting the process and importing them does not count.

        Raises:
            Disconnected: The process died.
            TimeoutError: There was no result in time.
        """
        if not self._is_ready:
            fault, _ = receive(self._connection)
            if fault is not None:
                return fault, None
            self._is_ready = True
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


class ProcessRunner:
    """A pool of worker processes for one group of stages; as many as there are elements in work."""

    def __init__(
        self, group: Group, source: Source, epoch: int, decisions: Decisions, limit: Callable[[], int]
    ) -> None:
        """Make the functions ready to be sent; processes start with the first elements.

        Raises:
            ConfigError: A function cannot be sent.
        """
        self._group = group
        self._source = source
        self._epoch = epoch
        self._decisions = decisions
        self._limit = limit
        self._shipped = ship(group.stages)
        self._lock = threading.RLock()  # garbage collection may call close() in a thread that holds it
        self._idle: list[WorkerProcess] = []
        self._all: set[WorkerProcess] = set()
        self._closed = False

    def run(self, element: Element) -> tuple[StageUse, ...]:
        """Have a worker process change the element into the result; see `Runner`."""
        if not element.num_rows:
            return tuple(StageUse(0.0, 0.0, 0, 0, 0) for _ in self._group.stages)
        result = self._call(element)
        if isinstance(result, StageFault):
            raise pipeline_error(result, self._group.stages, element, self._source)
        apply_result(element, result, self._group.stages, self._source)
        return result.uses

    def close(self) -> None:
        """Stop all processes."""
        with self._lock:
            self._closed = True
            workers = list(self._all)
            self._idle.clear()
        for worker in workers:
            worker.disconnect()
        for worker in workers:
            self._end(worker)

    def _call(self, element: Element) -> ChainResult | StageFault:
        control = (element.num_rows, element.num_bytes, (self._epoch, *element.key))
        for attempt in range(2):
            worker = self._acquire()
            try:
                result, rows = worker.call(control, element.payload, self._group.timeout_s)
            except Disconnected:
                self._report_death(worker, element, attempt)
                continue
            except TimeoutError:
                stack = worker.stack()
                self._end(worker, grace_s=0.0)
                raise stuck_error(self._group, element, self._source, stack) from None
            except BaseException:
                self._end(worker, grace_s=0.0)
                raise
            self._give_back(worker)
            if isinstance(result, StageFault):
                return result
            assert isinstance(result, ChainResult)
            return _with_payload(result, rows)
        raise PipelineError(
            f"stage {self._group.name}: its worker process died twice on {describe_element(element, self._source)}"
        )

    def _report_death(self, worker: WorkerProcess, element: Element, attempt: int) -> None:
        pid = worker.pid
        how = self._end(worker)
        if self._closed:
            raise PipelineError(f"stage {self._group.name}: closed")
        again = "given to a new worker" if attempt == 0 else "given up"
        reason = f"worker process {pid} {how}; {describe_element(element, self._source)} is {again}"
        self._decisions.record(f"stage {self._group.name}", {"worker": (pid, None)}, reason)

    def _acquire(self) -> WorkerProcess:
        with self._lock:
            if self._closed:
                raise PipelineError(f"stage {self._group.name}: closed")
            if self._idle:
                return self._idle.pop()
        worker = WorkerProcess(self._shipped)  # slow, so not under the lock; close() may come in between
        with self._lock:
            self._all.add(worker)
            closed_meanwhile = bool(self._closed)
        if closed_meanwhile:
            self._end(worker)
            raise PipelineError(f"stage {self._group.name}: closed")
        return worker

    def _give_back(self, worker: WorkerProcess) -> None:
        surplus: list[WorkerProcess] = []
        with self._lock:
            self._idle.append(worker)
            while self._idle and len(self._all) > self._limit():
                surplus.append(self._idle.pop(0))
                self._all.discard(surplus[-1])
        for each in surplus:
            each.stop()

    def _end(self, worker: WorkerProcess, grace_s: float = GRACE_S) -> str:
        with self._lock:
            known = worker in self._all
            self._all.discard(worker)
        return worker.stop(grace_s) if known else "was stopped"


def describe_exit(returncode: int) -> str:
    """How a process ended, in words."""
    if returncode >= 0:
        return f"ended by itself with status {returncode}"
    name = signal.Signals(-returncode).name
    hint = ", as the kernel does when memory runs out" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"


def _with_payload(result: ChainResult, rows: pa.RecordBatch | None) -> ChainResult:
    return ChainResult(rows, result.num_rows, result.num_bytes, result.num_filtered, result.faults, result.uses)
