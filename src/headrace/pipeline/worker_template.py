"""Forks worker processes from a template, which is started when first asked and lives as long as this process.

A fresh interpreter takes a second of a processor until it can work. On a small machine that is taken from the job, each
time the tuner adds a worker and in each window of a job; a fork takes a hundredth of it. The template is not this
process, whose threads and locks a fork would break; see `template_main`.
"""

from __future__ import annotations

import atexit
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

from headrace.pipeline.template_main import HEADER, NUMBER

__all__ = ["ForkedProcess", "fork_worker"]

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
"""Environment of a worker: many of them run side by side."""

LOST = -signal.SIGKILL
"""The exit status of a worker whose template died before it: most likely both were killed."""

END_PATIENCE_S = 5.0


class ForkedProcess:
    """A worker that the template has forked, which is no child of this process."""

    def __init__(self, pid: int, status_file: int) -> None:
        """Args: pid: Of the worker. status_file: Tells its exit status."""
        self.pid = pid
        self._returncode: int | None = None
        self._status_file = status_file
        self._lock = threading.Lock()

    def wait(self, timeout_s: float | None = None) -> int:
        """Its exit status, negative for a signal.

        Raises:
            TimeoutError: It has not ended in time.
        """
        with self._lock:
            if self._returncode is None:
                if not select.select([self._status_file], [], [], timeout_s)[0]:
                    raise TimeoutError(f"process {self.pid} has not ended after {timeout_s} s")
                told = os.read(self._status_file, NUMBER.size)
                self._returncode = int(NUMBER.unpack(told)[0]) if told else LOST
                os.close(self._status_file)
            return self._returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        try:
            self.wait(0)
        except TimeoutError:
            os.kill(self.pid, number)


class _Template:
    """A started template, and the connection to it."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        code = f"import sys; sys.path[:] = {sys.path!r}; from headrace.pipeline.template_main import main; "
        # Ctrl-C reaches every process of the terminal; this one is ended by us. A blocked signal is inherited.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"{code}main({theirs.fileno()})"],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**ONE_THREAD, **os.environ},
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def fork(self, files: Sequence[int]) -> ForkedProcess:
        """A worker with these files.

        Raises:
            OSError: The template has died.
        """
        surroundings: dict[str, Any] = {
            "path": sys.path,
            "folder": _folder(),
            "environment": {**ONE_THREAD, **os.environ},
            "cpus": os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None,
        }
        data = pickle.dumps(surroundings)
        status_file, theirs = os.pipe()
        try:
            socket.send_fds(self._control, [HEADER.pack(len(data))], [*files, theirs])
            self._control.sendall(data)
        except OSError:
            os.close(status_file)
            raise
        finally:
            os.close(theirs)
        told = os.read(status_file, NUMBER.size)
        if not told:
            os.close(status_file)
            raise OSError("the process that forks workers has died")
        return ForkedProcess(NUMBER.unpack(told)[0], status_file)

    def close(self) -> None:
        """Let it end."""
        self.forget()
        try:
            self._process.wait(END_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def forget(self) -> None:
        """Leave it to another process, of which this is a fork."""
        self._control.close()


def _folder() -> str | None:
    """The working directory; None if it was removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


_lock = threading.Lock()
_template: _Template | None = None


def fork_worker(files: Sequence[int]) -> ForkedProcess:
    """A worker process that serves `worker_main.main` with these files; the first takes as long as an interpreter.

    Raises:
        OSError: There is no memory for it, or what forks it keeps dying.
    """
    global _template
    with _lock:
        if _template is not None and _template.is_alive:
            try:
                return _template.fork(files)
            except OSError:
                pass  # it died a moment ago: another one
        _close()
        _template = _Template()
        return _template.fork(files)


@atexit.register
def _close() -> None:
    global _template
    template, _template = _template, None
    if template is not None:
        template.close()


def _after_fork() -> None:
    """In a fork of this process: the template is another's, and who holds the lock may not be there."""
    global _lock, _template
    template, _template, _lock = _template, None, threading.Lock()
    if template is not None:
        template.forget()


os.register_at_fork(after_in_child=_after_fork)
