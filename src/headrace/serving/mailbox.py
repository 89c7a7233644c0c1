"""`Mailbox`: has functions called in the thread of an event loop, many at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

__all__ = ["Mailbox"]


class Mailbox:
    """Calls functions in the thread of a loop, for other threads.

    It wakes the loop once for all that gather meanwhile: waking costs a system call, which for requests of a few rows
    would be a tenth of the work.

    Args:
        loop: The loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: deque[Callable[[], object]] = deque()
        self._is_called = False

    def put(self, call: Callable[[], object]) -> None:
        """Have a function called, from any thread."""
        self._calls.append(call)
        if not self._is_called:
            self._is_called = True
            self._loop.call_soon_threadsafe(self._empty)

    def _empty(self) -> None:
        self._is_called = False  # first, so that what is put from now on calls again
        while self._calls:
            self._calls.popleft()()
