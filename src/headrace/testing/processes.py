"""Finds child processes, and waits for processes to end, regardless of their parent."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress

import psutil

__all__ = ["running_children", "still_running"]


def running_children(parent: int, argument: str) -> list[psutil.Process]:
    """Children of a process whose command has an argument, by ascending process id.

    Those that have ended are left out, also if their parent has not noticed.

    Args:
        parent: Process id.
        argument: An argument of the command.

    Raises:
        psutil.NoSuchProcess: There is no such parent.
    """
    found = []
    for child in psutil.Process(parent).children():
        with suppress(psutil.NoSuchProcess):  # includes zombies
            if argument in child.cmdline():
                found.append(child)
    return sorted(found, key=lambda child: child.pid)


def still_running(
    processes: Iterable[psutil.Process], after: Callable[[], object], *, timeout_s: float = 120.0
) -> list[list[str]]:
    """Call `after`, wait until all processes have ended, and return the commands of those still running.

    A zombie counts as ended. Orphans are reparented to the init process, which in many containers never reaps them, so
    waiting until they are gone (`psutil.wait_procs`) may take forever.

    Args:
        processes: Any processes, children or not, running or ended.
        after: Called once all processes can be awaited.
        timeout_s: Seconds after which remaining processes are killed.

    Raises:
        AttributeError: Not on Linux, because `os.pidfd_open` is missing.
    """
    commands: dict[int, list[str]] = {}
    poll = select.poll()
    try:
        for process in processes:
            try:
                file = os.pidfd_open(process.pid)
            except ProcessLookupError:
                continue
            commands[file] = []
            with suppress(psutil.Error):  # a zombie by now
                commands[file] = process.cmdline()
            commands[file] = commands[file] or [f"process {process.pid}"]  # empty while it is starting
            poll.register(file, select.POLLIN)
        after()
        left = dict(commands)
        while left and (ended := poll.poll(1e3 * timeout_s)):
            for file, _ in ended:
                poll.unregister(file)
                del left[file]
        for file in left:
            signal.pidfd_send_signal(file, signal.SIGKILL)
        return list(left.values())
    finally:
        for file in commands:
            os.close(file)
