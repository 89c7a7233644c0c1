"""`InlineScoring`: scores in the thread of the event loop, between its rounds.

A thread beside the loop would have to get the interpreter's lock back after each kernel. Requests that arrive while a
batch is scored are read together in the next round, and are the next batch.
"""

from __future__ import annotations

import asyncio
from typing import Any

from headrace.serving.batcher import Batcher

__all__ = ["InlineScoring"]


class InlineScoring:
    """Has a batcher without threads score in a loop.

    Args:
        batcher: The batcher.
        loop: The running loop; all requests are added in its thread.
    """

    def __init__(self, batcher: Batcher[Any], loop: asyncio.AbstractEventLoop) -> None:
        self._batcher, self._loop = batcher, loop
        self._is_called = False
        batcher.wake_with(self._call_soon)

    def _call_soon(self) -> None:
        if not self._is_called:
            self._is_called = True
            self._loop.call_soon(self._step)

    def _step(self) -> None:
        self._is_called = False
        if self._batcher.step():
            self._call_soon()
