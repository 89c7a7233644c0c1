"""Lifelines: child processes that end when their parent ends, even if it is killed.

Only the parent holds the write end of a pipe, to which nothing is ever written; the child has the read end. When the
parent ends in any way, the kernel closes the write end, and the child is killed. (`PR_SET_PDEATHSIG` would kill it when
the *thread* that started it ends, and workers are started by short-lived threads.)
"""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import threading
import weakref
from contextlib import suppress
from multiprocessing import parent_process

__all__ = ["LIFELINE_VARIABLE", "Lifeline", "end_with_file", "end_with_parent"]

LIFELINE_VARIABLE = "HEADRACE_LIFELINE"
"""Environment variable with the child's file descriptor, for children started as commands."""


class Lifeline:
    """The parent's end of a lifeline, for one child.

    Attributes:
        child_file: The child's end, which is inherited by or sent to the child, then closed here with `release`.
    """

    def __init__(self) -> None:
        """Create the pipe."""
        self.child_file, self._own_file = os.pipe()
        _lifelines.add(self)

    def release(self) -> None:
        """Close the child's end in this process, once the child has its own copy."""
        self.child_file = _close(self.child_file)

    def close(self) -> None:
        """End the child, if it still runs. Idempotent."""
        self.release()
        self._own_file = _close(self._own_file)


_lifelines: weakref.WeakSet[Lifeline] = weakref.WeakSet()


def _close(file: int) -> int:
    if file >= 0:
        with suppress(OSError):
            os.close(file)
    return -1


def _after_fork() -> None:
    """Close lifelines in a fork of the parent, which must not keep the parent's children alive."""
    for lifeline in list(_lifelines):
        lifeline.close()


os.register_at_fork(after_in_child=_after_fork)


def end_with_parent() -> None:
    """Kill this process when its parent ends, if the parent requested it.

    The parent requests it with `LIFELINE_VARIABLE`, which is removed from the environment, or by starting this process
    with `multiprocessing`.
    """
    named = os.environ.pop(LIFELINE_VARIABLE, "")  # child processes do not have the descriptor
    parent = parent_process()
    if named.isdigit():
        with suppress(OSError):  # no such descriptor: an intermediate process closed it
            if stat.S_ISFIFO(os.fstat(int(named)).st_mode):
                os.set_inheritable(int(named), False)
                end_with_file(int(named))
    elif parent is not None:
        end_with_file(parent.sentinel)


def end_with_file(file: int) -> None:
    """Kill this process when the other end of a pipe is closed.

    On Linux the kernel does this, so it works even while a function holds the GIL or the process is stopped. Elsewhere
    a thread does it.

    Args:
        file: This process's end, not shared with other processes.
    """
    threading.Thread(target=_end_at_end_of, args=(file,), name="headrace-lifeline", daemon=True).start()
    if hasattr(fcntl, "F_SETSIG"):
        with suppress(OSError):  # not supported by the sandbox
            fcntl.fcntl(file, fcntl.F_SETOWN, os.getpid())
            fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGKILL)
            fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) | os.O_ASYNC)


def _end_at_end_of(file: int) -> None:
    os.read(file, 1)
    os._exit(1)
