"""`ThreadFeed`: worker threads that carry out the decisions of `PipelineState`.

There is a single lock, held for decisions and bookkeeping and never while a stage runs. Threads start after the first
request for a batch, as work appears, and sleep when there is none.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice

import pyarrow as pa

from headrace.logs.source import SourceBatch
from headrace.pipeline.engine.build import build_state, build_tunables, first_bytes
from headrace.pipeline.engine.counters import GroupNow, PipelineCounters, Recorder, count_waits
from headrace.pipeline.engine.decisions import Decisions
from headrace.pipeline.engine.delivery import element_of, open_source, source_error, stack_of, stuck_error
from headrace.pipeline.engine.element import Element
from headrace.pipeline.engine.headroom import check_floor
from headrace.pipeline.engine.lanes import OPEN, Work
from headrace.pipeline.engine.options import OpenOptions, make_groups
from headrace.pipeline.engine.position import Position
from headrace.pipeline.engine.runners import make_runner
from headrace.pipeline.engine.tuners import Tunable
from headrace.pipeline.engine.watchdog import MemoryWatchdog, interpreter_bytes
from headrace.pipeline.logical_plan import LogicalPlan
from headrace.pipeline.sources import reads_storage
from headrace.pipeline.transformations.chain import StageUse

__all__ = ["WORKER_NAME", "ThreadFeed"]

WORKER_NAME = "headrace-worker"
"""Name prefix of the threads that run stages."""

logger = logging.getLogger(__name__)

SAMPLE_EVERY_S = 0.001
"""Interval at which the lanes' wait reasons are sampled."""

SHORT_WORK_S = 50e-6
"""Work shorter than this is left to one thread: waking another takes as long, and both would wait for the GIL.
(Measured with 5 us of work on 2 CPUs: 4 threads took 340 us per element, one thread 150 us.)"""

CLOSE_PATIENCE_S = 30.0
"""Seconds `close` waits for running functions; a thread cannot be stopped from outside."""

LOOK_AGAIN_S = 0.005
"""While one thread does all short work, a waiting consumer checks at this interval whether it still is short."""

VIEW_RATIO = 1.05
"""A batch whose buffers exceed its rows by this factor is a view of a larger one."""


class ThreadFeed:
    """Produces the elements of a pipeline ahead of the consumer, in threads."""

    def __init__(
        self, plan: LogicalPlan, options: OpenOptions, epoch: int, position: Position, decisions: Decisions
    ) -> None:
        """Prepare lanes and runners without starting anything."""
        self._sources = plan.sources
        self._groups = make_groups(plan, options)
        self._stage_names = [("source",), *(tuple(stage.name for stage in group.stages) for group in self._groups)]
        self._lock = threading.RLock()  # re-entrant: garbage collection may call close() in a thread that holds it
        self._work_ready = threading.Condition(self._lock)
        self._batch_ready = threading.Condition(self._lock)
        self._threads: set[threading.Thread] = set()
        self._stuck: set[threading.Thread] = set()
        self._running: dict[threading.Thread, Work] = {}
        self._readers: dict[tuple[int, int], Iterator[SourceBatch]] = {}
        self._first = position
        self._num_idle = 0
        self._mean_work_s = 1.0
        self._consumer_waits = False
        self._closing = False
        self._sampled_s = time.monotonic()
        self.recorder = Recorder(["source", *(stage.name for stage in plan.stages)], time.monotonic)
        uses_processes = any(group.executor == "process" for group in self._groups)
        first_source = plan.sources[position.segment]
        self._reads_storage = reads_storage(first_source)
        element_bytes = first_bytes(first_source, position.split)
        check_floor(options.memory, interpreter_bytes(), element_bytes, uses_processes=uses_processes)
        self._watchdog = MemoryWatchdog(decisions, self._sampled_s, tightest=options.memory.tightest)
        self._wants_look = True
        self._state = build_state(plan, self._groups, options, position, decisions, element_bytes=element_bytes)
        self._runners = [
            make_runner(group, plan.sources, epoch, decisions, partial(self._state.limit, number), lane.workers)
            for number, (group, lane) in enumerate(zip(self._groups, self._state.lanes[1:], strict=True), start=1)
        ]
        self._limit_bytes = options.memory.limit_bytes

    @property
    def tunables(self) -> Mapping[str, Tunable]:
        """Settings that may change, by name.

        They are not kept: they refer to this feed, and a cycle would hold the buffers of its batches until garbage is
        next collected.
        """
        return build_tunables(self._state, self._limit_bytes, self._change)

    # ---- the consumer's side

    def take(self) -> Element | None:
        """Wait for the next element; None at the end.

        Raises:
            PipelineError: A stage failed on this element.
        """
        with self._lock:
            while True:
                if self._closing:
                    return None
                element = self._state.take()
                if element is not None:
                    self._wake_workers()
                    return element
                if self._state.failure is not None:
                    raise self._state.failure
                if self._state.has_ended:
                    return None
                self._wake_workers(although_short=True)
                self._consumer_waits = True
                try:
                    self._batch_ready.wait(self._patience())
                finally:
                    self._consumer_waits = False
                self._check_stuck()

    def peek(self, num_batches: int) -> tuple[list[Element], bool]:
        """Up to `num_batches` ready elements, without taking them, and whether they are the last."""
        with self._lock:
            self._wake_workers(although_short=True)
            return self._state.peek(num_batches)

    def counters(self, window_s: float) -> PipelineCounters:
        """Counters of the stages over a recent window."""
        with self._lock:
            state = self._state
            groups: dict[str, GroupNow] = {}
            for index, (lane, stages) in enumerate(zip(state.lanes, self._stage_names, strict=True)):
                now = GroupNow(lane.name, state.limit(index), lane.num_running, lane.queue_depth)
                groups |= dict.fromkeys(stages, now)
            ledger = state.ledger
            return PipelineCounters(
                *self.recorder.read(window_s, groups),
                bytes_in_flight=ledger.used_bytes,
                peak_bytes=ledger.peak_bytes,
                budget_bytes=ledger.budget_bytes,
                num_threads=state.num_workers,
                process_groups=tuple(group.name for group in self._groups if group.executor == "process"),
                process_cpu_s=self.recorder.process_cpu_s(window_s),
                reads_storage=self._reads_storage,
            )

    def restart_counters(self) -> None:
        """Restart the period of counters over the whole time."""
        with self._lock:
            self.recorder.restart()

    def close(self) -> None:
        """Stop all workers and wait for busy ones, up to a time limit."""
        with self._lock:
            self._closing = True
            self._work_ready.notify_all()
            self._batch_ready.notify_all()
            threads = list(self._threads)
            if threading.current_thread() in threads:
                # Called by garbage collection in a worker, perhaps in the middle of a decision: it must not change the
                # state, nor wait for threads that may wait for it. The last worker to leave cleans up.
                return
            self._state.stop()
        for runner in self._runners:
            runner.close()
        deadline = time.monotonic() + CLOSE_PATIENCE_S
        for thread in threads:
            if thread not in self._stuck:
                thread.join(max(0.0, deadline - time.monotonic()))
            if thread not in self._stuck and thread.is_alive():
                logger.warning("close: a worker is still busy and is abandoned; its stack is\n%s", stack_of(thread))
        self._readers.clear()  # closes the generators and their files

    # ---- the workers' side

    def _work_loop(self) -> None:
        self._lock.acquire()
        try:
            while not self._closing and self._work_once():
                pass
        except BaseException as error:  # our bug: raise it in the consumer, which would otherwise wait forever
            self._state.stop()
            self._state.failure = error
            self._batch_ready.notify_all()
        finally:
            self._threads.discard(threading.current_thread())
            is_last = not self._threads
            self._lock.release()
        if self._closing and is_last:
            for runner in self._runners:
                runner.close()

    def _work_once(self) -> bool:
        """Do the next work, or sleep until there is some; returns False to leave. The lock must be held."""
        me = threading.current_thread()
        now = time.monotonic()
        if self._wants_look:
            self._look()
        work = self._state.next_work(now)
        if work is None and self._state.headroom.wants_look:
            self._look(short=True)
            work = self._state.next_work(now)
        self._sample(now)
        if work is None:
            if len(self._threads) > self._max_threads():
                return False
            self._num_idle += 1
            self._work_ready.wait()
            self._num_idle -= 1
            return True
        self._running[me] = work
        self._wake_workers()
        self._lock.release()
        try:
            uses = self._carry_out(work)
            worked_s = time.monotonic() - now  # excludes the wait for the lock
        finally:
            self._lock.acquire()
            del self._running[me]
        self._record(work, uses)
        self._mean_work_s += (worked_s - self._mean_work_s) / 16
        if self._consumer_waits and self._state.has_batch:
            self._batch_ready.notify()
        return True

    def _look(self, *, short: bool = False) -> None:
        """Measure the memory; if it was short for the next work, free unused memory first."""
        self._wants_look = False
        for lane in self._state.lanes:
            if lane.workers is not None:
                lane.workers.is_short = short
        self._state.look(self._watchdog.look(free_unused=short))

    def _carry_out(self, work: Work) -> tuple[StageUse, ...]:
        """Read a batch or run stages, and store the result or failure in the work."""
        if self._watchdog.is_due(work.started_s):
            self._state.pressure = self._watchdog.poll()
            self._wants_look = True
        try:
            if work.lane == 0:
                return self._read(work)
            assert work.element is not None
            return () if work.element.ends_segment else self._runners[work.lane - 1].run(work.element)
        except Exception as error:
            work.failure = error
            if work.lane == 0 and work.split != OPEN:
                work.failure = source_error(error, self._sources[work.segment], work.split)
            if work.failure is not error:
                work.failure.__cause__ = error
        return ()

    def _read(self, work: Work) -> tuple[StageUse, ...]:
        if work.split == OPEN:
            work.num_splits = len(open_source(self._sources, work.segment))
            return ()
        wall, cpu = time.perf_counter(), time.thread_time()
        place = work.segment, work.split
        reader = self._readers.get(place)
        if reader is None:
            skip = self._first.source_batch if place == (self._first.segment, self._first.split) else 0
            reader = self._readers[place] = islice(self._sources[work.segment].read(work.split), skip, None)
        batch = next(reader, None)
        if batch is None:
            self._readers.pop(place, None)
            return ()
        work.element = element_of(batch, Position(work.split, work.source_batch, segment=work.segment))
        num_rows, num_bytes = work.element.num_rows, work.element.num_bytes
        return (StageUse(time.thread_time() - cpu, time.perf_counter() - wall, batch.num_read, num_rows, num_bytes),)

    def _record(self, work: Work, uses: tuple[StageUse, ...]) -> None:
        """Report finished work to the state, and count it."""
        element = work.element
        num_bytes_in, num_bytes = work.num_bytes_in, 0 if element is None else element.num_bytes
        estimator = self._state.lanes[work.lane].estimator
        was_known = estimator.is_known
        self._state.finished(work, num_bytes=num_bytes, is_view=element is not None and _is_view(element))
        self._wants_look |= estimator.is_known and not was_known  # measure the first element on its own
        names = ["source"] if work.lane == 0 else [stage.name for stage in self._groups[work.lane - 1].stages]
        for name, use in zip(names, uses, strict=False):
            self.recorder.stages[name].add(use, num_bytes_in)
            num_bytes_in = use.num_bytes_out
        self.recorder.tick(time.monotonic())

    def _wake_workers(self, *, although_short: bool = False) -> None:
        """Wake one more thread if there is work; it wakes the next one in turn."""
        if self._closing or not (self._num_idle or len(self._threads) < self._max_threads()):
            return
        if self._running and self._mean_work_s < SHORT_WORK_S and not although_short:
            return
        if not self._state.has_work():
            return
        if self._num_idle:
            self._work_ready.notify()
            return
        thread = threading.Thread(target=self._work_loop, name=WORKER_NAME, daemon=True)
        self._threads.add(thread)
        thread.start()

    def _max_threads(self) -> int:
        """Maximum worker threads: those that run stages, and one per busy worker process."""
        state = self._state
        waiting = sum(state.limit(index) for index, lane in enumerate(state.lanes) if not lane.in_threads)
        return state.num_workers + waiting

    def _sample(self, now: float) -> None:
        """Add the time since the last sample to each idle lane's wait counter, per idle worker."""
        passed = now - self._sampled_s
        if passed < SAMPLE_EVERY_S:
            return
        self._sampled_s = now
        count_waits(self.recorder.stages, self._state, self._stage_names, passed)

    def _patience(self) -> float | None:
        """How long the consumer waits before it checks for stuck functions, and for short work that became long."""
        if self._mean_work_s < SHORT_WORK_S:
            return LOOK_AGAIN_S
        timeouts = [group.timeout_s for group in self._groups if group.timeout_s is not None]
        return min(timeouts) / 4 if timeouts else None

    def _check_stuck(self) -> None:
        """Fail if an element has exceeded its stage's timeout."""
        now = time.monotonic()
        for thread, work in self._running.items():
            group = self._groups[work.lane - 1] if work.lane else None
            if group is None or group.executor != "thread" or group.timeout_s is None:
                continue
            if now - work.started_s > group.timeout_s and work.element is not None:
                self._stuck.add(thread)
                error = stuck_error(group, work.element, self._sources[work.element.segment], stack_of(thread))
                self._state.failure = error
                self._state.stop()
                raise error

    def _change(self, owner: object, attribute: str, value: int) -> None:
        """Change a setting of the state, and wake all threads."""
        with self._lock:
            setattr(owner, attribute, value)
            self._work_ready.notify_all()
            self._wake_workers()


def _is_view(element: Element) -> bool:
    payload = element.payload
    return isinstance(payload, pa.RecordBatch) and payload.get_total_buffer_size() > element.num_bytes * VIEW_RATIO
