"""`ScoringService`: answers requests with the newest version of a model, several requests at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

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

__all__ = ["Answer", "NotReady", "Question", "ScoringService"]

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


@dataclass(eq=False)
class Question:
    """A request that waits for scores.

    Attributes:
        read: Reads its rows from the body, in the thread that scores.
        num_rows: Its rows, or an estimate of them.
        reply: Called with the answer or an error, in the thread that scores; it must return quickly.
        rows: Its rows, when they were read.
        is_answered: Whether it has its reply.
    """

    read: Callable[[], pa.RecordBatch]
    num_rows: int
    reply: Callable[[Answer | Exception], object]
    rows: pa.RecordBatch | None = field(default=None, repr=False)
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
        num_threads: Threads that score, each with one CPU.
        clock: Seconds, ascending.

    Attributes:
        batcher: The queue.
        num_swaps: Versions taken into use, also earlier ones again.
    """

    def __init__(
        self,
        *,
        num_threads: int = 1,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._model: ServedModel | None = None
        self.num_swaps = 0
        self.batcher: Batcher[Question] = Batcher(
            self._answer,
            num_threads=num_threads,
            prepare=_use_one_thread,
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
        if readable:
            try:
                self._score_together(model, readable)
            except DataError:  # of one of them; its message must have that request's row numbers
                for question in readable:
                    if not question.is_answered:
                        self._score_alone(model, question)
        return sum(question.num_rows for question in questions)

    def _score_together(self, model: ServedModel, questions: Sequence[Question]) -> None:
        for alike in _by_schema(questions):
            batches = [question.rows for question in alike if question.rows is not None]
            scores = model.score(concat(batches))
            first = 0
            for question, rows in zip(alike, batches, strict=True):
                question.answer(Answer(scores[first : first + rows.num_rows], model))
                first += rows.num_rows

    def _score_alone(self, model: ServedModel, question: Question) -> None:
        assert question.rows is not None
        try:
            scores = model.score(question.rows)
        except DataError as error:
            question.answer(BadRequest(str(error), 422))
            return
        question.answer(Answer(scores, model))


def _read(question: Question) -> bool:
    """Read the rows of a question; if that is impossible, it gets the error."""
    try:
        question.rows = question.read()
        question.num_rows = question.rows.num_rows
    except Exception as error:
        question.answer(error)
        return False
    return True


def _by_schema(questions: Sequence[Question]) -> Iterable[list[Question]]:
    """Questions whose rows can be joined."""
    groups: dict[pa.Schema, list[Question]] = {}
    for question in questions:
        assert question.rows is not None
        groups.setdefault(question.rows.schema, []).append(question)
    return groups.values()


def _use_one_thread() -> None:
    numba.set_num_threads(1)
    torch.set_num_threads(1)
