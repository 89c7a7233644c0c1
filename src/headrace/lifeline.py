"""Processes that end with the process that started them, also when that one is killed.

The parent alone holds the writing end of a pipe, into which nothing is ever written; the child has the other end. When
the parent ends in any way the kernel closes its end, and the child is killed. (`PR_SET_PDEATHSIG` would kill it when
the *thread* that started it ends, and workers are started by threads that soon do.)
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
"""Names the descriptor of the child's end to a child that is started as a command."""


class Lifeline:
    """The parent's side, for one child.

    Attributes:
        child_file: The child's end, to be inherited by it or sent to it, then closed here with `release`.
    """

    def __init__(self) -> None:
        """Make the pipe."""
        self.child_file, self._own_file = os.pipe()
        _lifelines.add(self)

    def release(self) -> None:
        """Close the child's end here, once the child has its own copy."""
        self.child_file = _close(self.child_file)

    def close(self) -> None:
        """End the child, if it has not ended. Safe to call twice."""
        self.release()
        self._own_file = _close(self._own_file)


_lifelines: weakref.WeakSet[Lifeline] = weakref.WeakSet()


def _close(file: int) -> int:
    if file >= 0:
        with suppress(OSError):
            os.close(file)
    return -1


def _after_fork() -> None:
    """A fork of the parent must not keep the parent's children alive."""
    for lifeline in list(_lifelines):
        lifeline.close()


os.register_at_fork(after_in_child=_after_fork)


def end_with_parent() -> None:
    """Have this process killed when the one that started it ends; does nothing if that one did not ask for it.

    It asks with `LIFELINE_VARIABLE`, which is removed from the environment, or by starting this with `multiprocessing`.
    """
    named = os.environ.pop(LIFELINE_VARIABLE, "")  # the processes this one starts do not have the descriptor
    parent = parent_process()
    if named.isdigit():
        with suppress(OSError):  # no such descriptor: the variable was handed on by somebody who closes files
            if stat.S_ISFIFO(os.fstat(int(named)).st_mode):
                os.set_inheritable(int(named), False)
                end_with_file(int(named))
    elif parent is not None:
        end_with_file(parent.sentinel)


def end_with_file(file: int) -> None:
    """Have this process killed when the other end of a pipe is closed.

    On Linux the kernel does it, so that it also happens while a function holds the GIL or the process is stopped. A
    thread does it elsewhere.

    Args:
        file: This process's end, which it shares with no other process.
    """
    threading.Thread(target=_end_at_end_of, args=(file,), name="headrace-lifeline", daemon=True).start()
    if hasattr(fcntl, "F_SETSIG"):
        with suppress(OSError):  # a sandbox that does not know it
            fcntl.fcntl(file, fcntl.F_SETOWN, os.getpid())
            fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGKILL)
            fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) | os.O_ASYNC)


def _end_at_end_of(file: int) -> None:
    os.read(file, 1)
    os._exit(1)
