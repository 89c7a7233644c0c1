"""Main function of the template process, a fork server: it has imported what workers need, and forks them.

It has one thread (except Arrow's allocator threads, which are fork-safe), opens no files and runs no user code, so a
fork of it behaves like a fresh interpreter.
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
"""Header of a request: length of its pickled environment; the file descriptors come with it."""

NUMBER = struct.Struct("=i")
"""Fields of a worker's status file: its process id (a negative errno if the fork failed), then its exit status."""

NUM_FILES = 4
"""Files of a request: those of `worker_main.main`, and the status file."""


def main(control_file: int) -> None:
    """Fork a worker per request and report how each one ended, until the other end closes the connection."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})  # the parent may have blocked it
    try:
        gc.freeze()  # a worker's garbage collector must not write to shared pages
        forked = _serve(control_file)
    except EOFError:  # the requester died in the middle of a request
        sys.exit(1)
    if forked is not None:
        _become_worker(*forked)


def _serve(control_file: int) -> tuple[dict[str, Any], list[int], list[int]] | None:
    """Serve requests; in a forked worker, return its environment, its files, and the files that are not its own."""
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # only needed to wake up the wait
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
                    return None  # workers notice themselves that the pipeline's process is gone
                surroundings = pickle.loads(exactly(control, *HEADER.unpack(header)))
                *of_worker, status_file = files
                try:
                    pid = os.fork()
                except OSError as error:  # no memory, or too many processes: the next fork may succeed
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
        with suppress(OSError):  # those CPUs were taken away meanwhile
            os.sched_setaffinity(0, surroundings["cpus"])
    sys.path[:] = surroundings["path"]
    sys.path_importer_cache.clear()
    np.random.seed()  # user functions may use it, and workers must not all draw the same numbers
    worker_main.main(*files)
    _end()


def _end() -> NoReturn:
    """Flush buffered output and end the process without finalising the interpreter.

    Finalising would write to, and so copy, all memory shared with the template: 60 MB per worker, all at the same time,
    which killed whole pipelines in small cgroups as they ended.
    """
    atexit._run_exitfuncs()
    for thing in gc.get_objects():  # the template's own objects are frozen and not listed
        if issubclass(type(thing), io.IOBase):
            with suppress(Exception):  # it or its other end is closed
                thing.flush()
    os._exit(0)
