"""`ScoringService`: answers requests with the newest version of a model, several requests at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from headrace.errors import DataError, HeadraceError
from headrace.logs.groups import concat
from headrace.serving.batcher import Batcher
from headrace.serving.model import ServedModel
from headrace.serving.requests import BadRequest

__all__ = ["Answer", "NotReady", "Question", "Records", "ScoringService", "use_one_thread"]

Float32s = npt.NDArray[np.float32]


class NotReady(HeadraceError):
    """There is no version of the model yet."""


@dataclass(frozen=True)
class Answer:
    """Scores of a request, all of one version.

    Attributes:
        scores: float32 [N, L], see `ServedModel.score`.
        model: The version that gave them.
    """

    scores: Float32s
    model: ServedModel


Records = list[dict[str, Any]]


@dataclass(eq=False)
class Question:
    """A request that waits for scores.

    Attributes:
        read: Reads its rows from the body, or its records, in the thread that scores.
        num_rows: Its rows, or an estimate of them.
        reply: Called with the answer or an error, in the thread that scores; it must return quickly.
        columns: Makes rows of records, also of those of several requests; None if `read` gives rows.
        rows: What was read.
        is_answered: Whether it has its reply.
    """

    read: Callable[[], pa.RecordBatch | Records]
    num_rows: int
    reply: Callable[[Answer | Exception], object]
    columns: Callable[[Records], pa.RecordBatch] | None = None
    rows: pa.RecordBatch | Records | None = field(default=None, repr=False)
    is_answered: bool = False

    def answer(self, answer: Answer | Exception) -> None:
        """Reply, unless that was done."""
        if not self.is_answered:
            self.is_answered = True
            self.reply(answer)

    def give_up(self, error: Exception) -> None:
        """See `Waiting`."""
        self.answer(error)


class ScoringService:
    """Scores rows of requests with the model that is current when their batch begins.

    Requests are put together into one batch, as many as arrived while the previous one was scored, see `Batcher`. The
    rows of a batch have the same scores as alone, bit for bit. A request that cannot be read gets an error, and
    those beside it their answers.

    Args:
        num_threads: Threads that score, each with one CPU; 0 to score in the thread of the event loop.
        clock: Seconds, ascending.

    Attributes:
        batcher: The queue.
        num_swaps: Versions taken into use, also earlier ones again.
    """

    def __init__(
        self,
        *,
        num_threads: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._model: ServedModel | None = None
        self.num_swaps = 0
        self.batcher: Batcher[Question] = Batcher(
            self._answer,
            num_threads=num_threads,
            prepare=use_one_thread,
            clock=clock,
        )

    def start(self) -> None:
        """Start to score."""
        self.batcher.start()

    def use(self, model: ServedModel) -> None:
        """Answer with another version from the next batch on."""
        self._model = model  # one reference, so a batch has the old or the new one
        self.num_swaps += 1

    @property
    def model(self) -> ServedModel:
        """The current version.

        Raises:
            NotReady: There is none yet.
        """
        model = self._model
        if model is None:
            raise NotReady("the model has no version yet; try again later")
        return model

    def ask(self, question: Question) -> None:
        """Have a question answered.

        Raises:
            Overloaded: It could not be answered in time.
            NotReady: There is no version yet.
        """
        if self._model is None:
            raise NotReady("the model has no version yet; try again later")
        self.batcher.add(question)

    def score(self, rows: pa.RecordBatch, *, timeout_s: float = 60.0) -> Answer:
        """Score rows, and wait for the answer.

        Raises:
            BadRequest: A value is not valid.
            HeadraceError: See `ask`.
        """
        answered, answers = threading.Event(), []

        def reply(answer: Answer | Exception) -> None:
            answers.append(answer)
            answered.set()

        self.ask(Question(lambda: rows, rows.num_rows, reply))
        if not answered.wait(timeout_s):
            raise HeadraceError(f"no answer within {timeout_s:g} s")
        (answer,) = answers
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _answer(self, questions: Sequence[Question]) -> int:
        model = self.model
        readable = [question for question in questions if _read(question)]
        for alike in _that_can_be_joined(readable):
            try:
                self._score(model, alike)
            except Exception:  # of one of them; its message must have that request's row numbers
                for question in alike:
                    self._score_alone(model, question)
        return sum(question.num_rows for question in readable)

    def _score(self, model: ServedModel, questions: Sequence[Question]) -> None:
        scores = model.score(_rows_of(questions))
        first = 0
        for question in questions:
            question.answer(Answer(scores[first : first + question.num_rows], model))
            first += question.num_rows

    def _score_alone(self, model: ServedModel, question: Question) -> None:
        try:
            self._score(model, [question])
        except DataError as error:
            question.answer(BadRequest(str(error), 422))
        except Exception as error:  # whatever it is, the others are answered
            question.answer(error)


def _read(question: Question) -> bool:
    """Read the rows or records of a question; if that is impossible, it gets the error."""
    try:
        question.rows = question.read()
    except Exception as error:
        question.answer(error)
        return False
    rows = question.rows
    question.num_rows = len(rows) if isinstance(rows, list) else rows.num_rows
    return True


def _that_can_be_joined(questions: Sequence[Question]) -> Iterable[list[Question]]:
    """Questions with records of the same reader, or rows of the same schema."""
    groups: dict[Any, list[Question]] = {}
    for question in questions:
        key = question.rows.schema if question.columns is None else question.columns  # type: ignore[union-attr]
        groups.setdefault(key, []).append(question)
    return groups.values()


def _rows_of(questions: Sequence[Question]) -> pa.RecordBatch:
    columns = questions[0].columns
    if columns is None:
        return concat([question.rows for question in questions])
    return columns([record for question in questions for record in question.rows])  # type: ignore[union-attr]


def use_one_thread() -> None:
    """Have kernels and products of the calling thread use one CPU."""
    numba.set_num_threads(1)
    torch.set_num_threads(1)
