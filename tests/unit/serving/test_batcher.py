"""Requests that arrive while a batch is scored make the next one; what would be answered too late is refused."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from headrace.serving.batcher import Batcher, Overloaded


@dataclass
class Asked:
    num_rows: int
    answers: list[object] = field(default_factory=list)

    def give_up(self, error: Exception) -> None:
        self.answers.append(error)


class Scoring:
    """Scores when it is told to; `batches` has the rows of each request."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun, self.may_end = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, requests: Sequence[Asked]) -> int:
        self.batches.append([request.num_rows for request in requests])
        self.begun.release()
        assert self.may_end.acquire(timeout=30)
        for request in requests:
            if request.num_rows == 13:
                raise ValueError("thirteen")
            request.answers.append("scored")
        return sum(request.num_rows for request in requests)


def batcher_of(scoring: Scoring) -> Batcher[Asked]:
    batcher: Batcher[Asked] = Batcher(scoring, clock=lambda: 0.0)
    batcher.most_rows, batcher.most_waiting_rows = 10, 40
    return batcher


def test_requests_gather_while_a_batch_is_scored() -> None:
    scoring = Scoring()
    batcher = batcher_of(scoring)
    batcher.start()
    requests = [Asked(rows) for rows in (1, 2, 3, 4, 5)]
    batcher.add(requests[0])
    assert scoring.begun.acquire(timeout=30)
    for request in requests[1:]:
        batcher.add(request)
    assert batcher.waiting_rows == 14
    for _ in range(3):
        scoring.may_end.release()
    assert batcher.drain(30)
    assert scoring.batches == [[1], [2, 3, 4], [5]]  # at most 10 rows
    assert all(request.answers == ["scored"] for request in requests)


def test_a_request_beyond_the_limit_is_refused_with_the_reason() -> None:
    scoring = Scoring()
    batcher = batcher_of(scoring)
    batcher.start()
    batcher.add(Asked(1))
    assert scoring.begun.acquire(timeout=30)
    batcher.add(Asked(38))
    with pytest.raises(Overloaded, match="overloaded: 39 rows come first, and only 40 could be answered in time"):
        batcher.add(Asked(2))
    batcher.add(Asked(1))
    assert batcher.num_shed == 1
    for _ in range(3):
        scoring.may_end.release()
    assert batcher.drain(30)


def test_an_error_is_the_answer_of_its_batch_and_the_thread_goes_on() -> None:
    scoring = Scoring()
    batcher = batcher_of(scoring)
    batcher.start()
    bad, good = Asked(13), Asked(1)
    batcher.add(bad)
    scoring.may_end.release()
    batcher.add(good)
    scoring.may_end.release()
    assert batcher.drain(30)
    assert [str(answer) for answer in bad.answers] == ["thirteen"]
    assert good.answers == ["scored"]


def test_a_server_that_stops_answers_what_waits_and_takes_no_more() -> None:
    scoring = Scoring()
    batcher = batcher_of(scoring)
    batcher.start()
    request = Asked(1)
    batcher.add(request)
    scoring.may_end.release()
    assert batcher.drain(30)
    assert request.answers == ["scored"]
    with pytest.raises(Overloaded, match="stopping"):
        batcher.add(Asked(1))


def test_without_threads_half_as_many_rows_may_wait_since_they_waited_for_the_batch_before() -> None:
    scoring = Scoring()
    batcher: Batcher[Asked] = Batcher(scoring, num_threads=0, clock=lambda: 0.0)
    batcher.most_rows, batcher.most_waiting_rows = 100, 40
    woken: list[bool] = []
    batcher.wake_with(lambda: woken.append(True))
    batcher.add(Asked(50))  # one alone is never too many
    scoring.may_end.release()
    assert woken == [True]
    assert not batcher.step()
    batcher.add(Asked(15))
    batcher.add(Asked(5))
    with pytest.raises(Overloaded, match="20 rows come first, and only 20 could be answered in time"):
        batcher.add(Asked(1))
    scoring.may_end.release()
    assert not batcher.step()
    assert scoring.batches == [[50], [15, 5]]
