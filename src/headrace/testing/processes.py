"""Waiting for processes to end, whoever their parent is by then."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress

import psutil

__all__ = ["still_running"]


def still_running(
    processes: Iterable[psutil.Process], after: Callable[[], object], *, timeout_s: float = 120.0
) -> list[list[str]]:
    """Do something, wait until all processes have ended, and return the commands of those that have not.

    A process has ended once it is a zombie. Orphans belong to the init process, and in many containers that is a
    program that never reaps them, so waiting until they are gone (`psutil.wait_procs`) may take forever.

    Args:
        processes: Any processes, children or not. Those that have ended already are fine.
        after: Called once every process can be waited for.
        timeout_s: Seconds after which a process counts as still running; it is then killed.

    Raises:
        AttributeError: Not on Linux, which alone has `os.pidfd_open`.
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
            commands[file] = commands[file] or [f"process {process.pid}"]  # empty while it is being started
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
