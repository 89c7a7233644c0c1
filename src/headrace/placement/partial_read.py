"""`PartialRead`: the rows of a batch that come in parts, each read when the micro-batch that needs it is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

import numpy as np
import numpy.typing as npt

__all__ = ["LazyRows", "PartialRead", "ask_in_turn"]

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]

Answer = TypeVar("Answer")


class PartialRead:
    """Rows float32 [U, dim] of U keys, of which those of micro-batch j are here once parts 0 to j have come.

    Args:
        gather: Reads the rows of keys at some positions.
        receive: Waits for the next part.
        parts: For each part, the positions of its keys.
        shape: U and dim.

    Attributes:
        part: The micro-batch that is trained.
    """

    def __init__(
        self,
        gather: Callable[[Int64s], Float32s],
        receive: Callable[[], None],
        parts: Sequence[Int64s],
        shape: tuple[int, int],
    ) -> None:
        self.part = 0
        self._gather, self._receive, self._parts = gather, receive, parts
        self._rows: Float32s = np.zeros(shape, dtype=np.float32)
        is_here = np.ones(shape[0], dtype=np.bool_)
        is_here[np.concatenate([np.empty(0, np.int64), *parts])] = False
        here = np.flatnonzero(is_here)
        self._rows[here] = gather(here)
        self._num_received = 0

    @property
    def is_complete(self) -> bool:
        """Whether all rows are here."""
        return self._num_received == len(self._parts)

    def rows(self) -> Float32s:
        """The rows, float32 [U, dim]; zeros for those of later micro-batches. Waits for those of this one."""
        while self._num_received <= self.part and not self.is_complete:
            self._receive()
            places = self._parts[self._num_received]
            if len(places):
                self._rows[places] = self._gather(places)
            self._num_received += 1
        return self._rows


class LazyRows(Future[Float32s]):
    """A read whose rows are waited for by the thread that asks for the result, and not before."""

    def __init__(self, rows: Callable[[], Float32s]) -> None:
        super().__init__()
        self._rows = rows

    def result(self, timeout: float | None = None) -> Float32s:
        """The rows, float32 [U, dim]."""
        if not self.done():
            self.set_result(self._rows())
        return super().result()


def ask_in_turn(
    ask: Callable[[Int64s], Future[list[Answer]]], parts: Sequence[Int64s], then: Callable[[], None] = lambda: None
) -> list[Future[list[Answer]]]:
    """Ask for several parts, each once the one before has come, so that it has the link to itself.

    Args:
        ask: Asks for keys at some positions.
        parts: The positions of each part; nothing is asked for an empty one.
        then: Called once, when the last answer has come or one has failed, and before its future is done.

    Returns:
        The future of each part. If one fails, so do those after it.
    """
    answers: list[Future[list[Answer]]] = [Future() for _ in parts]

    def fail(number: int, error: BaseException) -> None:
        then()
        for answer in answers[number:]:
            answer.set_exception(error)

    def ask_from(number: int) -> None:
        while number < len(parts) and not len(parts[number]):
            answers[number].set_result([])
            number += 1
        if number == len(parts):
            then()
            return

        def came(answer: Future[list[Answer]]) -> None:
            error = answer.exception()
            if error is not None:
                fail(number, error)
                return
            ask_from(number + 1)  # first, so that the link is not idle
            answers[number].set_result(answer.result())

        try:
            ask(parts[number]).add_done_callback(came)
        except Exception as error:
            fail(number, error)

    ask_from(0)
    return answers
