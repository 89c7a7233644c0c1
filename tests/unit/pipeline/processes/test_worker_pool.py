"""Who gets which worker, with workers that are not processes."""

import threading
from collections.abc import Callable

import pytest

from headrace.errors import PipelineError
from headrace.pipeline.processes.messages import Disconnected
from headrace.pipeline.processes.worker_pool import WorkerPool
from headrace.pipeline.transformations.chain import StageFault


class FakeWorker:
    """Ready when told."""

    def __init__(self, number: int) -> None:
        self.pid, self.answer = number, threading.Event()
        self.fault: StageFault | None = None
        self.dies = self.stopped = False

    def wait_until_ready(self) -> StageFault | None:
        self.answer.wait()
        if self.dies:
            raise Disconnected
        return self.fault

    def disconnect(self) -> None:
        self.dies = True
        self.answer.set()

    def stop(self, grace_s: float = 1.0) -> str:
        self.stopped = True
        return "was killed"


class Pool:
    """A pool of fake workers, and threads that ask for one."""

    def __init__(self, limit: int, at_once: int = 8) -> None:
        self.limit, self.reports = limit, list[tuple[int, str]]()
        self.started = list[FakeWorker]()
        self._more = threading.Condition()
        self.pool: WorkerPool[FakeWorker] = WorkerPool(
            "map",
            self._start,
            limit=lambda: self.limit,
            at_once=lambda: at_once,
            report=lambda pid, how: self.reports.append((pid, how)),
        )

    def _start(self) -> FakeWorker:
        with self._more:
            self.started.append(FakeWorker(len(self.started)))
            self._more.notify_all()
            return self.started[-1]

    def worker(self, number: int) -> FakeWorker:
        """The worker that was started as so many-th, as soon as it was."""
        with self._more:
            self._more.wait_for(lambda: len(self.started) > number)
            return self.started[number]

    def ask(self) -> Callable[[], FakeWorker | Exception]:
        """Ask for a worker in a thread; a function that waits for what it got."""
        got = list[FakeWorker | Exception]()

        def acquire() -> None:
            try:
                got.append(self.pool.acquire())
            except Exception as error:
                got.append(error)

        waiting = len(self.pool._turns)
        thread = threading.Thread(target=acquire)
        thread.start()
        while thread.is_alive() and len(self.pool._turns) == waiting:
            thread.join(0.001)

        def result() -> FakeWorker | Exception:
            thread.join()
            (only,) = got
            return only

        return result


def test_who_waits_takes_the_first_worker_that_is_free_not_the_one_that_starts_for_him() -> None:
    pool = Pool(limit=2)
    first = pool.ask()
    pool.worker(0).answer.set()
    assert first() is pool.worker(0)
    second = pool.ask()
    starting = pool.worker(1)
    pool.pool.give_back(pool.worker(0))
    assert second() is pool.worker(0)
    assert not starting.answer.is_set()
    pool.pool.close()
    assert starting.stopped


def test_turns_are_taken_in_order() -> None:
    pool = Pool(limit=1)
    asked = [pool.ask() for _ in range(3)]
    pool.worker(0).answer.set()
    for each in asked:
        assert each() is pool.worker(0)
        pool.pool.give_back(pool.worker(0))
    assert len(pool.started) == 1
    pool.pool.close()


def test_no_more_workers_start_than_are_allowed_at_once_and_in_all() -> None:
    pool = Pool(limit=3, at_once=2)
    asked = [pool.ask() for _ in range(5)]
    pool.worker(1)
    assert len(pool.started) == 2
    pool.worker(0).answer.set()
    pool.worker(2).answer.set()
    pool.worker(1).answer.set()
    assert {each() for each in asked[:3]} == set(pool.started)  # type: ignore[comparison-overlap]
    assert len(pool.started) == 3
    pool.pool.close()
    assert all(isinstance(each(), PipelineError) for each in asked[3:])


def test_when_the_limit_falls_a_worker_ends_that_has_no_element() -> None:
    pool = Pool(limit=3)
    asked = [pool.ask() for _ in range(3)]
    for number in range(3):
        pool.worker(number).answer.set()
    workers = [each() for each in asked]
    pool.limit = 2
    pool.pool.give_back(workers[0])  # type: ignore[arg-type]
    pool.pool.close()
    assert [worker.stopped for worker in workers] == [True, True, True]  # type: ignore[union-attr]
    assert pool.pool.end(workers[0]) == "was stopped"  # type: ignore[arg-type]


def test_a_worker_that_dies_while_it_starts_is_reported_and_tried_once_more() -> None:
    pool = Pool(limit=1)
    asked = pool.ask()
    pool.worker(0).disconnect()
    pool.worker(1).answer.set()
    assert asked() is pool.worker(1)
    assert pool.reports == [(0, "was killed")]
    pool.pool.close()


def test_two_that_die_in_a_row_fail_everyone_who_waits() -> None:
    pool = Pool(limit=1)
    asked = [pool.ask(), pool.ask()]
    pool.worker(0).disconnect()
    pool.worker(1).disconnect()
    assert {str(each()) for each in asked} == {
        "stage map: its worker processes die while starting: the last one was killed"
    }
    pool.pool.close()


def test_functions_that_cannot_be_loaded_fail_everyone_who_asks() -> None:
    pool = Pool(limit=2)
    asked = pool.ask()
    worker = pool.worker(0)
    worker.fault = StageFault(0, "no module")
    worker.answer.set()
    assert isinstance(asked(), StageFault)
    with pytest.raises(StageFault):
        pool.pool.acquire()
    pool.pool.close()
    assert worker.stopped
