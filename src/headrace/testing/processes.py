"""Waits for processes to end, regardless of their parent."""

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
