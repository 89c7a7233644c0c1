"""`WorkerPool`: assigns elements to ready workers, the element that has waited longest first.

Before a worker is ready it imports the user's modules, which takes longer while CPUs are busy. So workers are started,
and surplus ones stopped, in separate threads: an element never waits for a new worker while another one could take it,
and a result never waits for an old one to end.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from headrace.errors import PipelineError
from headrace.pipeline.processes.messages import Disconnected
from headrace.pipeline.transformations.chain import StageFault

__all__ = ["Worker", "WorkerPool"]

MAX_FAILED_STARTS = 2
"""Consecutive workers that may die before they are ready; a single one may be bad luck with memory."""

END_PATIENCE_S = 5.0
"""Seconds `close` waits for threads that start or stop a worker; each finishes when the worker's process has ended."""


class Worker(Protocol):
    """Interface of a worker; see `WorkerProcess`."""

    @property
    def pid(self) -> int: ...

    def wait_until_ready(self) -> StageFault | None: ...

    def disconnect(self) -> None: ...

    def stop(self, grace_s: float = ...) -> str: ...


W = TypeVar("W", bound=Worker)


class _Turn(Generic[W]):
    """A caller waiting for a worker."""

    def __init__(self) -> None:
        self.come = threading.Event()
        self.worker: W | None = None


class WorkerPool(Generic[W]):
    """Workers for one group of stages: as many as there are callers waiting, up to a limit. Thread-safe."""

    def __init__(
        self,
        name: str,
        start: Callable[[], W],
        *,
        limit: Callable[[], int],
        at_once: Callable[[], int],
        report: Callable[[int, str], None],
    ) -> None:
        """Create an empty pool.

        Args:
            name: Name of the group, for error messages.
            start: Starts a worker, which may not be ready yet.
            limit: Returns the current maximum number of workers.
            at_once: Maximum number of workers starting at the same time: they compete with the others for CPUs.
            report: Called with the process id of a worker that died while starting, and how it ended.
        """
        self._name, self._start, self._limit, self._at_once, self._report = name, start, limit, at_once, report
        self._lock = threading.RLock()  # garbage collection may call close() in a thread that holds it
        self._idle: list[W] = []
        self._ready: set[W] = set()  # idle or busy
        self._starting: set[W] = set()
        self._turns: deque[_Turn[W]] = deque()
        self._threads: set[threading.Thread] = set()
        self._num_starting = 0
        self._num_failed_starts = 0
        self._fault: StageFault | None = None
        self._failure = ""
        self._closed = False

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @property
    def num_workers(self) -> int:
        """Number of workers that are ready or starting."""
        return len(self._ready) + self._num_starting

    def acquire(self) -> W:
        """Wait for a ready worker; callers are served in order.

        Raises:
            StageFault: A worker could not load the functions.
            PipelineError: The pool was closed, or workers keep dying while starting.
        """
        with self._lock:
            self._check()
            if self._idle:
                return self._idle.pop()
            turn: _Turn[W] = _Turn()
            self._turns.append(turn)
            self._start_more()
        turn.come.wait()
        if turn.worker is not None:
            return turn.worker
        self._check()
        raise AssertionError("a caller was woken without a worker and without an error")

    def give_back(self, worker: W) -> None:
        """Return a worker that is ready for another element; a surplus worker is stopped."""
        with self._lock:
            if self._closed or worker not in self._ready:
                return
            if len(self._ready) > self._limit():
                spare = self._idle.pop(0) if self._idle else worker
                self._ready.discard(spare)
                self._in_background(spare.stop)
                if spare is worker:
                    return
            self._hand_over(worker)

    def end(self, worker: W, grace_s: float | None = None) -> str:
        """Stop a worker that no other caller uses; returns how it ended."""
        with self._lock:
            known = worker in self._ready or worker in self._starting
            self._ready.discard(worker)
            self._starting.discard(worker)
            self._start_more()
        if not known:
            return "was stopped"
        return worker.stop() if grace_s is None else worker.stop(grace_s)

    def close(self) -> None:
        """Stop all workers, and wake all waiting callers."""
        with self._lock:
            self._closed = True
            workers, threads = [*self._ready, *self._starting], list(self._threads)
            self._idle.clear()
            self._dismiss()
        for worker in workers:
            worker.disconnect()
        for worker in workers:
            self.end(worker)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(END_PATIENCE_S)

    def _check(self) -> None:
        if self._closed:
            raise PipelineError(f"stage {self._name}: closed")
        if self._fault is not None:
            raise StageFault(*self._fault.args)
        if self._failure:
            raise PipelineError(self._failure)

    def _start_more(self) -> None:
        """Start workers for waiting callers, within the limits. The lock must be held."""
        while (
            not (self._closed or self._failure or self._fault)
            and self._num_starting < min(len(self._turns), self._at_once())
            and len(self._ready) + self._num_starting < max(self._limit(), 1)
        ):
            self._num_starting += 1
            self._in_background(self._bring_up)

    def _bring_up(self) -> None:
        """Start a worker, wait until it is ready, and hand it over."""
        try:
            worker = self._start()
        except Exception as error:  # for instance, no memory for another process
            with self._lock:
                self._num_starting -= 1
                self._fail(f"stage {self._name}: cannot start a worker process: {error}")
            return
        with self._lock:
            self._starting.add(worker)
            if self._closed:  # close() did not see this worker
                worker.disconnect()
        try:
            fault = worker.wait_until_ready()
        except (Disconnected, OSError):
            how = self.end(worker)
            with self._lock:
                self._num_starting -= 1
                if not self._closed:
                    self._died_starting(worker.pid, how)
            return
        with self._lock:
            self._num_starting -= 1
            if fault is None and not self._closed:
                self._num_failed_starts = 0
                self._starting.discard(worker)
                self._ready.add(worker)
                self.give_back(worker)
                self._start_more()
                return
            if fault is not None:
                self._fault = fault
                self._dismiss()
        self.end(worker)

    def _died_starting(self, pid: int, how: str) -> None:
        self._num_failed_starts += 1
        self._report(pid, how)
        if self._num_failed_starts < MAX_FAILED_STARTS:
            self._start_more()
        else:
            self._fail(f"stage {self._name}: its worker processes die while starting: the last one {how}")

    def _fail(self, reason: str) -> None:
        self._failure = reason
        self._dismiss()

    def _hand_over(self, worker: W) -> None:
        if self._turns:
            turn = self._turns.popleft()
            turn.worker = worker
            turn.come.set()
        else:
            self._idle.append(worker)

    def _dismiss(self) -> None:
        """Wake all waiting callers, which then see the reason."""
        while self._turns:
            self._turns.popleft().come.set()

    def _in_background(self, work: Callable[[], object]) -> None:
        def run() -> None:
            try:
                work()
            finally:
                self._threads.discard(thread)  # without the lock, which the caller of close() may hold

        thread = threading.Thread(target=run, name="headrace-worker-pool", daemon=True)
        self._threads.add(thread)
        thread.start()
