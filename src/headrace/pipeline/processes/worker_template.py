"""Forks worker processes from a template process (a fork server), started on first use and kept until this process
ends.

A fresh interpreter needs a second of CPU time before it can work. On a small machine the job pays for that each time
the tuner adds a worker, and in each window; a fork takes a hundredth of it. This process itself is not forked, because
its threads and locks would break in the child; see `template_main`.
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
"""Environment variables of a worker, since many of them run in parallel."""

END_PATIENCE_S = 5.0


class _Died(OSError):
    """The template process has died."""


class ForkedProcess:
    """A worker forked by the template, and so not a child of this process.

    On Linux it is awaited and signalled through a pidfd, which outlives the template and never refers to another
    process.
    """

    def __init__(self, pid: int, status_file: int) -> None:
        """Wrap worker `pid`; its exit status is read from `status_file`."""
        self.pid = pid
        self._returncode: int | None = None
        self._has_ended = False
        self._status_file = status_file
        self._process_file = -1
        with suppress(ProcessLookupError):  # it has ended already, and its status file says so
            self._process_file = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else -1
        self._lock = threading.Lock()

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait for the exit status, negative for a signal; None if unknown because the template died first.

        Raises:
            TimeoutError: It did not end in time.
        """
        if not self._has_ended:
            watched = self._status_file if self._process_file < 0 else self._process_file
            if not _is_readable(watched, timeout_s):
                raise TimeoutError(f"process {self.pid} did not end within {timeout_s} s")
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
        """Send a signal, unless the process has ended."""
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
    """A running template process and the connection to it."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        code = f"import sys; sys.path[:] = {sys.path!r}; from headrace.pipeline.processes.template_main import main; "
        # Ctrl-C reaches every process of the terminal, but we stop this one ourselves. A blocked signal is inherited.
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
        """Whether it can still take requests."""
        return self._process.poll() is None

    def fork(self, files: Sequence[int]) -> ForkedProcess:
        """Fork a worker that inherits these files.

        Raises:
            OSError: The fork failed.
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
        """Let the process end."""
        self.forget()
        try:
            self._process.wait(END_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def forget(self) -> None:
        """Drop the connection without closing the template, which belongs to this process's parent."""
        self._control.close()


def _folder() -> str | None:
    """The working directory, or None if it was removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


_lock = threading.Lock()
_template: _Template | None = None


def fork_worker(files: Sequence[int]) -> ForkedProcess:
    """Fork a worker process that runs `worker_main.main` with these files; the first call also starts the template.

    Raises:
        OSError: There is no memory for it, or the template keeps dying.
    """
    global _template
    with _lock:
        if _template is not None and _template.is_alive:
            with suppress(_Died):  # it died just now: start another one
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
    """Reset the state in a fork: the template belongs to the parent, and the lock's owner may not exist here."""
    global _lock, _template
    template, _template, _lock = _template, None, threading.Lock()
    if template is not None:
        template.forget()


os.register_at_fork(after_in_child=_after_fork)
