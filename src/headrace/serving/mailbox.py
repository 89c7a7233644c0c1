"""`Mailbox`: hands results of threads to an event loop, many at a time."""

from __future__ import annotations

import asyncio
from collections import deque

__all__ = ["Mailbox"]


class Mailbox:
    """Sets results of futures of a loop from other threads.

    It wakes the loop once for all that gather meanwhile: waking costs a system call, which for requests of a few rows
    would be a tenth of the work.

    Args:
        loop: The loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._results: deque[tuple[asyncio.Future[bytes], bytes | Exception]] = deque()
        self._is_called = False

    def put(self, future: asyncio.Future[bytes], result: bytes | Exception) -> None:
        """Have a result set, from any thread."""
        self._results.append((future, result))
        if not self._is_called:
            self._is_called = True
            self._loop.call_soon_threadsafe(self._empty)

    def _empty(self) -> None:
        self._is_called = False  # first, so that what is put from now on calls again
        while self._results:
            future, result = self._results.popleft()
            if future.done():  # the client has gone, or did not wait any longer
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
