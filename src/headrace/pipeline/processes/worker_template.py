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
from contextlib import suppress
from typing import Any

from headrace.pipeline.processes.template_main import HEADER, NUMBER

__all__ = ["ForkedProcess", "fork_worker"]

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
"""Environment of a worker: many of them run side by side."""

END_PATIENCE_S = 5.0


class _Died(OSError):
    """The template is no more."""


class ForkedProcess:
    """A worker that the template has forked, which is no child of this process.

    It is waited for and signalled through a descriptor of the process where the system has them (Linux), which outlives
    the template and never stands for another process.
    """

    def __init__(self, pid: int, status_file: int) -> None:
        """Args: pid: Of the worker. status_file: Tells its exit status."""
        self.pid = pid
        self._returncode: int | None = None
        self._has_ended = False
        self._status_file = status_file
        self._process_file = -1
        with suppress(ProcessLookupError):  # it has ended already, which the status file tells
            self._process_file = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else -1
        self._lock = threading.Lock()

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Its exit status, negative for a signal; None if nobody knows, because the template died before it.

        Raises:
            TimeoutError: It has not ended in time.
        """
        if not self._has_ended:
            watched = self._status_file if self._process_file < 0 else self._process_file
            if not _is_readable(watched, timeout_s):
                raise TimeoutError(f"process {self.pid} has not ended after {timeout_s} s")
        with self._lock:
            if not self._has_ended:
                told = b""
                if _is_readable(self._status_file, END_PATIENCE_S):
                    told = os.read(self._status_file, NUMBER.size)
                self._returncode = int(NUMBER.unpack(told)[0]) if told else None
                self._has_ended = True
                for file in (self._status_file, self._process_file):
                    if file >= 0:
                        os.close(file)
            return self._returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        with self._lock, suppress(ProcessLookupError):
            if self._has_ended:
                return
            if self._process_file >= 0:
                signal.pidfd_send_signal(self._process_file, number)
            elif not _is_readable(self._status_file, 0.0):
                os.kill(self.pid, number)


def _is_readable(file: int, timeout_s: float | None) -> bool:
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return bool(poll.poll(None if timeout_s is None else 1e3 * timeout_s))


class _Template:
    """A started template, and the connection to it."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        code = f"import sys; sys.path[:] = {sys.path!r}; from headrace.pipeline.processes.template_main import main; "
        # Ctrl-C reaches every process of the terminal; this one is ended by us. A blocked signal is inherited.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", f"{code}main({theirs.fileno()})"],
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
            OSError: It cannot be forked now.
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
            try:
                socket.send_fds(self._control, [HEADER.pack(len(data))], [*files, theirs])
                self._control.sendall(data)
            except (BrokenPipeError, ConnectionResetError) as error:
                raise _Died from error
            finally:
                os.close(theirs)
            told = os.read(status_file, NUMBER.size)
            if not told:
                raise _Died("the process that starts workers has died")
            pid = NUMBER.unpack(told)[0]
            if pid < 0:
                raise OSError(-pid, os.strerror(-pid))
        except OSError:
            os.close(status_file)
            raise
        return ForkedProcess(pid, status_file)

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
            with suppress(_Died):  # a moment ago: another one
                return _template.fork(files)
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
