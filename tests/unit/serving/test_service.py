"""A request that fails, however it does, does not fail those that are scored with it."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("orjson", reason="needs the extra serve")

from headrace.serving.service import Answer, Question, ScoringService


class Model:
    """Scores a row with its number; fails if a row has the number 13."""

    version = 1

    def score(self, rows: pa.RecordBatch) -> np.ndarray:
        numbers = rows["number"].to_numpy()
        if 13 in numbers:
            raise AttributeError("thirteen")
        return numbers.astype(np.float32)[:, None]


def test_an_unexpected_error_is_the_answer_of_its_request_alone() -> None:
    service = ScoringService(num_threads=0)
    service.use(Model())  # type: ignore[arg-type]
    answers: dict[int, Any] = {}
    for number in (1, 13, 2):
        rows = pa.record_batch({"number": [number]})
        service.ask(Question(lambda rows=rows: rows, 1, lambda answer, number=number: answers.update({number: answer})))
    assert not service.batcher.step()
    assert isinstance(answers[13], AttributeError)
    assert [answers[number].scores.tolist() for number in (1, 2) if isinstance(answers[number], Answer)] == [
        [[1.0]],
        [[2.0]],
    ]
