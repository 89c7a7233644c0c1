"""`StepRuntime`: threads that execute the decisions of `SchedulerState`.

    caller's thread   dense(b) push(b)* update(b)             dense(b+1) ...
    cpu threads                         features(b+2, g) ...
    reader thread     read(b+3)
    the store's own                     pull(b+1, g) ...

Sending a pull or a push is cheap, and is done by the thread that reported the event it waited for (*).

If nothing can overlap (rows in this process, one feature group, no spare core), the caller's thread does everything:
hand-overs between threads would cost a millisecond per step and hide nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import Any, Protocol

import numba

from headrace.scheduling.events import BatchRead, Event, Finished, OperatorFailed, Run, SegmentRead, StepRequested
from headrace.scheduling.graph import Kind, Lane, Operator
from headrace.scheduling.state import SchedulerState
from headrace.scheduling.trace import Span, Trace

__all__ = ["StepRuntime", "Work"]

Done = Callable[[BaseException | None], None]
"""Called once when a transfer ends, with its error or None."""


class Work(Protocol):
    """Implementation of the operators of a step. The graph ensures that only one thread at a time calls an operator."""

    def read(self, batch: int) -> tuple[int, int] | None:
        """Read the rows of the next batch; returns their bytes, and the number of feature groups.

        Returns None at the end of a segment; the next call then continues with the next segment, if there is one.
        """

    def features(self, operator: Operator) -> int:
        """Compute features and their unique keys; returns their bytes."""

    def pull(self, operators: Sequence[Operator], after: int, defers: bool, done: Done) -> Sequence[int]:
        """Pull the rows of some groups and parts of a batch in one request; returns the bytes of each.

        Rows include the push of batch `after`; with `defers`, keys that the previous batch updates are skipped.
        """

    def deferred_pull(self, operators: Sequence[Operator], after: int, done: Done) -> Sequence[int]:
        """Pull the keys that early pulls skipped, in the same way."""

    def dense(self, operator: Operator) -> int:
        """Run the forward and backward pass of a batch or a part of it; returns bytes."""

    def push(self, batch: int, done: Done) -> int:
        """Send the gradients of the batch's keys; returns their bytes."""

    def update(self, batch: int) -> Any:
        """Step the dense optimizer and release the batch; returns the result of `StepRuntime.step`."""


class StepRuntime:
    """Trains batches in the caller's thread, and does everything else in background threads. A context manager.

    Batches of later segments are also read and computed ahead. If that fails, the error is raised when the batch is the
    next to train, so errors in the next segment do not affect the current one.
    """

    def __init__(
        self, work: Work, state: SchedulerState, *, trace: Trace | None = None, is_inline: bool = False
    ) -> None:
        """Start the threads; reading starts with the first `step`.

        Args:
            work: Implementation of the operators.
            state: State machine that makes the decisions.
            trace: Trace of operators and times.
            is_inline: Whether `step` does everything in the caller's thread, because work cannot overlap anyway.
        """
        self.state = state
        self.trace = Trace() if trace is None else trace
        self._work = work
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._lanes: dict[Lane, SimpleQueue[Run | None]] = {lane: SimpleQueue() for lane in Lane}
        self._is_inline = is_inline
        if is_inline:
            self._lanes[Lane.CPU] = self._lanes[Lane.TRAINER]
        self._failure: BaseException | None = None
        self._failed_ahead: dict[tuple[int, int], BaseException] = {}  # by segment and batch
        self._in_flight = 0
        self._step = self._segment = 0
        self._result: Any = None
        names = [] if is_inline else ["reader", *(f"cpu {number}" for number in range(state.num_cores))]
        self._threads = [threading.Thread(target=self._loop, args=(name,), name=f"headrace-{name}") for name in names]
        for thread in self._threads:
            thread.daemon = True
            thread.start()

    def __enter__(self) -> StepRuntime:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def step(self) -> Any | None:
        """Train the next batch of the segment.

        Returns:
            The result of `Work.update`; None at the end of the segment, when all pushes are applied. The next call then
            continues with the next segment, whose rows are pulled only from then on.

        Raises:
            BaseException: The error of an operator.
        """
        self._raise_failure()
        self._post(StepRequested(self._step, perf_counter(), self._segment))
        while not self._is_over():
            run = self._next_run()
            self._raise_failure()
            if run is None:
                continue  # handle the end of the segment
            self._carry_out(run, "trainer")
            if run.operator.kind is Kind.UPDATE:
                self._step += 1
                result, self._result = self._result, None
                return result
        self._segment += 1
        return None

    def settle(self) -> None:
        """Wait until the updates of all steps so far are applied.

        Raises:
            BaseException: The error of an operator.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.state.is_applied(self._step - 1) or self._failure is not None)
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Stop all threads, and wait for pending transfers."""
        for number in range(len(self._threads)):
            self._lanes[Lane.READER if number == 0 else Lane.CPU].put(None)
        for thread in self._threads:
            thread.join()
        with self._changed:
            self._changed.wait_for(lambda: self._in_flight == 0, timeout=60.0)

    def _is_over(self) -> bool:
        with self._lock:
            return self.state.is_over

    def _next_run(self) -> Run | None:
        """The caller's thread's next operator; it reads rows if there is nothing else to do, as in a plain loop."""
        if self._is_inline:
            for lane in (Lane.TRAINER, Lane.READER):
                try:
                    return self._lanes[lane].get_nowait()
                except Empty:
                    continue
        return self._lanes[Lane.TRAINER].get()

    def _raise_failure(self) -> None:
        failed = self._failure or self._failed_ahead.get((self._segment, self._step))
        if failed is not None:
            raise failed

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()
        self._lanes[Lane.TRAINER].put(None)

    def _fail_ahead(self, operator: Operator, error: Exception) -> None:
        """Keep the error until its batch is the next to train; earlier batches continue."""
        with self._lock:
            self._failed_ahead.setdefault((self.state.segment_of(operator.batch), operator.batch), error)
        self._post(OperatorFailed(operator, perf_counter()))
        self._lanes[Lane.TRAINER].put(None)

    def _loop(self, name: str) -> None:
        numba.set_num_threads(1)  # one core per operator; parallel kernels would use other operators' cores
        lane = self._lanes[Lane.READER if name == "reader" else Lane.CPU]
        while (run := lane.get()) is not None:
            if self._failure is None:
                self._carry_out(run, name)

    def _post(self, *events: Event) -> None:
        """Pass events to the state machine, and queue or execute its decisions."""
        with self._changed:
            if self._failure is not None:
                return
            was_over = self.state.is_over
            runs = self.state.handle(*events)
            is_over = self.state.is_over
            self._in_flight += sum(run.operator.kind.lane is Lane.NETWORK for run in runs)
            self._changed.notify_all()
        if is_over and not was_over:
            self._lanes[Lane.TRAINER].put(None)
        for run in runs:
            if run.operator.kind.lane is not Lane.NETWORK:
                self._lanes[run.operator.kind.lane].put(run)
        for transfer in _transfers(runs):
            self._send(transfer)

    def _carry_out(self, run: Run, name: str) -> None:
        operator, start = run.operator, perf_counter()
        work, num_bytes, num_groups = self._work, 0, 0
        try:
            match operator.kind:
                case Kind.READ:
                    read = work.read(operator.batch)
                    if read is None:
                        self._post(SegmentRead(perf_counter()))
                        return
                    num_bytes, num_groups = read
                case Kind.FEATURES:
                    num_bytes = work.features(operator)
                case Kind.DENSE:
                    num_bytes = work.dense(operator)
                case _:
                    self._result = work.update(operator.batch)
        except BaseException as error:
            if operator.kind in (Kind.READ, Kind.FEATURES) and isinstance(error, Exception):
                self._fail_ahead(operator, error)
                return
            self._fail(error)
            if name == "trainer":
                raise
            return
        end = perf_counter()
        self.trace.add(Span(operator, name, start, end, run.reason, num_bytes))
        if operator.kind is Kind.READ:
            self._post(BatchRead(num_bytes, end - start, end, num_groups))
        else:
            self._post(Finished(operator, end - start, num_bytes, end))

    def _send(self, runs: Sequence[Run]) -> None:
        """Send one request for a group of operators."""
        run, start = runs[0], perf_counter()
        operators = [each.operator for each in runs]
        kind, batch = run.operator.kind, run.operator.batch
        sizes: list[int] = []

        def done(error: BaseException | None) -> None:
            end = perf_counter()
            traced = run.operator if len(runs) == 1 else Operator(kind, batch)
            self.trace.add(Span(traced, Lane.NETWORK.value, start, end, run.reason, sum(sizes)))
            if error is None:
                ends = zip(operators, sizes, strict=True)
                self._post(*(Finished(operator, end - start, num_bytes, end) for operator, num_bytes in ends))
            else:
                self._fail(error)
            with self._changed:
                self._in_flight -= len(runs)
                self._changed.notify_all()

        arrived = _Arrival(done)  # the answer may arrive before the call that requested it returns
        try:
            if kind is Kind.PUSH:
                sizes.append(self._work.push(batch, arrived))
            elif kind is Kind.DEFERRED_PULL:
                sizes += self._work.deferred_pull(operators, run.after, arrived)
            else:
                sizes += self._work.pull(operators, run.after, run.defers, arrived)
        except BaseException as error:
            arrived(error)
        arrived.release()


class _Arrival:
    """A callback that runs once, and not before `release`."""

    def __init__(self, callback: Done) -> None:
        self._callback = callback
        self._lock = threading.Lock()
        self._is_released = self._is_done = False
        self._arrived: list[BaseException | None] = []

    def __call__(self, error: BaseException | None) -> None:
        self._arrived.append(error)
        self._call()

    def release(self) -> None:
        self._is_released = True
        self._call()

    def _call(self) -> None:
        with self._lock:
            due = self._is_released and bool(self._arrived) and not self._is_done
            self._is_done = self._is_done or due
        if due:
            self._callback(self._arrived[0])


def _transfers(runs: Sequence[Run]) -> Iterator[list[Run]]:
    """Group the network operators that fit into one request."""
    together: dict[tuple[Kind, int, int, bool], list[Run]] = {}
    for run in runs:
        if run.operator.kind.lane is Lane.NETWORK:
            together.setdefault((run.operator.kind, run.operator.batch, run.after, run.defers), []).append(run)
    yield from together.values()
