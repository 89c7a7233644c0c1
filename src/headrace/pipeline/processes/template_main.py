"""The main function of the workers' template: an interpreter that has imported what they need, and forks them.

It has one thread (but for Arrow's allocator, which knows of forks), opens nothing and runs no user code, so that a fork
of it is as good as a fresh interpreter.
"""

from __future__ import annotations

import atexit
import errno
import gc
import io
import os
import pickle
import select
import signal
import socket
import struct
import sys
from contextlib import suppress
from typing import Any, NoReturn

import numpy as np

from headrace.pipeline.processes import worker_main
from headrace.pipeline.processes.messages import exactly

__all__ = ["HEADER", "NUMBER", "NUM_FILES", "main"]

HEADER = struct.Struct("=I")
"""Of a request: the length of its surroundings, pickled; the files come with it."""

NUMBER = struct.Struct("=i")
"""What is told through a worker's status file: first its process id, or the error that it could not be forked for as a
negative number, then its exit status."""

NUM_FILES = 4
"""Of a request: those of `worker_main.main`, and the status file."""


def main(control_file: int) -> None:
    """Fork a worker for each request, and tell how each ended, until the other end closes the connection."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})  # whoever started this may have blocked it
    try:
        gc.freeze()  # the collector of a worker must not write to memory that it shares
        forked = _serve(control_file)
    except EOFError:  # whoever asked died in the middle of it
        sys.exit(1)
    if forked is not None:
        _become_worker(*forked)


def _serve(control_file: int) -> tuple[dict[str, Any], list[int], list[int]] | None:
    """Returns at the end; in a worker at once, with its surroundings, its files, and those that are not its own."""
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # its wake-up is all that counts
    signal.set_wakeup_fd(woken)
    status_files: dict[int, int] = {}
    poll = select.poll()
    for file in (control_file, wake):
        poll.register(file, select.POLLIN)
    with socket.socket(fileno=control_file) as control:
        while True:
            ready = {file for file, _ in poll.poll()}
            if wake in ready:
                os.read(wake, 1 << 12)
                _reap(status_files)
            if control_file in ready:
                header, files, _, _ = socket.recv_fds(control, HEADER.size, NUM_FILES)
                if not header:
                    return None  # workers see by themselves that the pipeline's process is gone
                surroundings = pickle.loads(exactly(control, *HEADER.unpack(header)))
                *of_worker, status_file = files
                try:
                    pid = os.fork()
                except OSError as error:  # no memory, or too many processes: the next one may fit
                    pid = -(error.errno or errno.EAGAIN)
                if pid == 0:
                    control.detach()
                    return surroundings, of_worker, [control_file, wake, woken, *status_files.values(), status_file]
                for file in of_worker:
                    os.close(file)
                with suppress(BrokenPipeError):
                    os.write(status_file, NUMBER.pack(pid))
                if pid > 0:
                    status_files[pid] = status_file
                else:
                    os.close(status_file)


def _reap(status_files: dict[int, int]) -> None:
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            pid, status = ended
            with suppress(BrokenPipeError):
                os.write(status_files[pid], NUMBER.pack(os.waitstatus_to_exitcode(status)))
            os.close(status_files.pop(pid))


def _become_worker(surroundings: dict[str, Any], files: list[int], others: list[int]) -> None:
    """Serve the pipeline's process, then end."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for file in others:
        os.close(file)
    os.environ.clear()
    os.environ.update(surroundings["environment"])
    if surroundings["folder"] is not None:
        os.chdir(surroundings["folder"])
    if surroundings["cpus"] is not None:
        with suppress(OSError):  # they were taken away this moment
            os.sched_setaffinity(0, surroundings["cpus"])
    sys.path[:] = surroundings["path"]
    sys.path_importer_cache.clear()
    np.random.seed()  # users' functions may use it, and workers must not all draw the same
    worker_main.main(*files)
    _end()


def _end() -> NoReturn:
    """End the process, with what functions have buffered written, but without taking the interpreter apart.

    That would write to all memory that is shared with the template, and so copy it: 60 MB for each worker, for all of
    them at the same moment, which got whole pipelines killed in small cgroups as they ended.
    """
    atexit._run_exitfuncs()
    for thing in gc.get_objects():  # not those of the template, which are frozen
        if issubclass(type(thing), io.IOBase):
            with suppress(Exception):  # closed, or its other end is
                thing.flush()
    os._exit(0)
