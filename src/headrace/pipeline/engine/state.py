"""`PipelineState`: the scheduler of a running pipeline, as a state machine. Events in, instructions out.

No threads, locks or clocks: `thread_feed.py` calls it under a lock and carries out its instructions. The rules:

1. **Nearest to the consumer first.** A free worker takes work from the last lane that has any, so elements are finished
  before new ones are started, and workers need not be divided among stages.
2. **Order.** An element leaves a lane only after all elements before it.
3. **Bounded look-ahead.** A lane holds only a few finished elements that its successor has no room for yet.
4. **Memory.** Work is started only with a reservation for its result, and only if the budget then still has room for
  everything that the oldest undelivered element needs on its way to the consumer. So that element can always continue.
  If it alone exceeds the budget, it continues by itself, and this is reported.
5. **Headroom.** Work is not started if the process has no memory for it (see `headroom.py`), except the oldest element
  alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum

from headrace.pipeline.engine.element import Element
from headrace.pipeline.engine.headroom import Headroom, MemoryLook
from headrace.pipeline.engine.lanes import Lane, StageLane, Work
from headrace.pipeline.engine.ledger import Charge, Ledger
from headrace.pipeline.engine.source_lane import SourceLane
from headrace.resources import format_bytes

__all__ = ["Blocked", "PipelineState", "Pressure"]

AHEAD = 2
"""Elements that an intermediate lane may finish ahead, in addition to those in progress."""


class Blocked(StrEnum):
    """Why a lane cannot start work."""

    INPUT = "no input"
    LIMIT = "all workers of the stage are busy"
    AHEAD = "enough results are ready"
    THREADS = "all threads are busy"
    MEMORY = "no memory for the result"
    STOPPED = "the pipeline is stopped"


class Pressure(StrEnum):
    """Memory pressure: how close the machine or cgroup is to its limit.

    NONE -> PREFETCH: prefetching stops. PREFETCH -> WORKERS: one worker only; and back as memory becomes free.
    """

    NONE = "none"
    PREFETCH = "no prefetch"
    WORKERS = "one worker"


class PipelineState:
    """The lanes of a pipeline, and the decisions about which work to start.

    Attributes:
        lanes: The source lane, then one lane per group of stages.
        ledger: Ledger of the bytes in flight.
        num_workers: Maximum threads that run stages at once.
        num_prefetch: Elements that the last lane may finish ahead.
        read_ahead_bytes: Bytes that splits after the first open one may hold.
        pressure: Memory pressure, set by the memory watchdog.
        headroom: Memory that the process may still allocate.
        failure: Error to raise in the consumer, once all elements before it have been taken.
    """

    def __init__(
        self,
        source: SourceLane,
        stages: Sequence[StageLane],
        ledger: Ledger,
        *,
        num_workers: int,
        num_prefetch: int,
        read_ahead_bytes: int,
        report: Callable[[str], None],
    ) -> None:
        """Start with empty lanes; `report` is called, once per lane, if an element exceeds the budget."""
        self.source = source
        self.lanes: tuple[Lane, ...] = (source, *stages)
        self._stages = stages
        self.ledger = ledger
        self.num_workers = num_workers
        self.num_prefetch = num_prefetch
        self.read_ahead_bytes = read_ahead_bytes
        self.pressure = Pressure.NONE
        self.headroom = Headroom()
        self._running_growth_bytes = 0.0
        self.failure: BaseException | None = None
        self._breakage: BaseException | None = None
        self._num_cancelled = 0
        self._report = report
        self._over_budget: set[str] = set()
        self._threads_running = 0
        self._num_running = 0

    # ---- events

    def next_work(self, now: float) -> Work | None:
        """The next work for a free worker, marked as started; None if nothing may start."""
        self._pump()
        for index in range(len(self.lanes) - 1, -1, -1):
            found = self._candidate(index)
            if isinstance(found, Work):
                self._start(found, now)
                return found
            if found is Blocked.MEMORY:
                return None  # lanes further from the consumer must not take the memory this lane waits for
        return None

    def finished(self, work: Work, *, num_bytes: int = 0, is_view: bool = False) -> None:
        """Record that a worker has finished; `work.element` is the result, or `work.failure` is set.

        Args:
            work: Result of `next_work`.
            num_bytes: Bytes of the result.
            is_view: Whether the result points into its input's memory.
        """
        lane = self.lanes[work.lane]
        lane.num_running -= 1
        self._num_running -= 1
        self._threads_running -= lane.in_threads
        work.done = True
        self._running_growth_bytes -= work.growth_bytes
        self.headroom.finished(work.reserved_bytes, num_bytes)
        element = work.element
        if element is None or work.failure is not None or work.lane < self._num_cancelled:
            self.ledger.add(-work.reserved_bytes)
            if element is not None:
                element.release()
        else:
            charge = Charge(self.ledger, num_bytes, work.reserved_bytes)
            if not is_view:
                element.release()
            element.num_bytes = num_bytes
            element.holds = (*element.holds, charge)
            if work.lane:
                lane.estimator.learn(work.num_bytes_in, num_bytes)
        if isinstance(lane, SourceLane) and work.lane >= self._num_cancelled:
            lane.finish(work)

    def take(self) -> Element | None:
        """Take the next element for the consumer, which then owns its bytes; None if none is ready."""
        last = self.lanes[-1]
        self._pump()
        if not last.head_is_done():
            if last.has_ended and self._breakage is not None:
                self.failure = self._breakage
            return None
        failure = last.head_failure()
        if failure is not None:
            self.failure = failure
            self.stop()
            return None
        element = last.pop()
        element.release()
        self.headroom.taken()
        return element

    def peek(self, num_batches: int) -> tuple[list[Element], bool]:
        """Up to `num_batches` of the next elements with rows that are ready, and whether they are the last.

        They stay in place, and stay charged.
        """
        self._pump()
        last = self.lanes[-1]
        ready = last.ready()
        batches = [element for element in ready if element.num_rows]
        is_all = len(batches) <= num_batches and last.ends_after(len(ready)) and self._breakage is None
        return batches[:num_batches], is_all

    def look(self, memory: MemoryLook) -> None:
        """Record a memory measurement."""
        self.headroom.look(memory, self._running_growth_bytes)

    def stop(self) -> None:
        """Drop all elements; work in progress is dropped when it finishes."""
        for lane in self.lanes:
            lane.clear()
        self._num_cancelled = len(self.lanes)

    # ---- questions

    @property
    def has_batch(self) -> bool:
        """Whether `take` has a result: an element, the end or a failure."""
        self._pump()
        last = self.lanes[-1]
        return last.head_is_done() or last.has_ended

    @property
    def has_ended(self) -> bool:
        """Whether the consumer has taken all elements."""
        return self.failure is not None or self.lanes[-1].has_ended

    def has_work(self) -> bool:
        """Whether `next_work` would return work, or might after a new memory measurement."""
        self._pump()
        for index in range(len(self.lanes) - 1, -1, -1):
            found = self._candidate(index)
            if isinstance(found, Work):
                return True
            if found is Blocked.MEMORY:
                return self.headroom.wants_look
        return False

    def why_idle(self, index: int) -> Blocked | None:
        """Why a lane cannot start work, or None if it can."""
        found = self._candidate(index)
        return None if isinstance(found, Work) else found

    def limit(self, index: int) -> int:
        """Maximum elements that a lane processes at once."""
        return self.lanes[index].own_limit or self.num_workers

    # ---- rules

    def _candidate(self, index: int) -> Work | Blocked:
        """The work that a lane could start now, or why there is none."""
        if index < self._num_cancelled:
            return Blocked.STOPPED
        lane = self.lanes[index]
        found = self._next_read() if index == 0 else self._next_element(index)
        if isinstance(found, Blocked):
            return found
        if lane.num_running >= (self.limit(index) if lane.estimator.is_known else 1):
            return Blocked.LIMIT  # one at a time until the size of results is known
        num_threads = 1 if self.pressure is Pressure.WORKERS else self.num_workers
        if lane.in_threads and self._threads_running >= num_threads:
            return Blocked.THREADS
        return found if self._admits(found) else Blocked.MEMORY

    def _next_element(self, index: int) -> Work | Blocked:
        lane = self._stages[index - 1]
        if not lane.waiting:
            return Blocked.INPUT
        if lane.slots and len(lane.slots) >= self.limit(index) + self._ahead(index):
            return Blocked.AHEAD
        num_bytes = lane.waiting[0].num_bytes
        return Work(index, None, num_bytes_in=num_bytes, reserved_bytes=lane.estimator.reserve(num_bytes))

    def _next_read(self) -> Work | Blocked:
        source = self.source
        candidates = source.candidates(self.limit(0))
        if not candidates:
            return Blocked.LIMIT if source.num_running else Blocked.INPUT
        for work in candidates:
            if source.is_head_split(work):
                allowed = source.num_ready < max(1, self._ahead(0))
            else:
                allowed = self.pressure is Pressure.NONE and source.ahead_bytes < self.read_ahead_bytes
            if allowed:
                work.reserved_bytes = source.need_bytes
                return work
        return Blocked.AHEAD

    def _ahead(self, index: int) -> int:
        if self.pressure is not Pressure.NONE:
            return 0
        return self.num_prefetch if index == len(self.lanes) - 1 else AHEAD

    def _admits(self, work: Work) -> bool:
        """Whether there is memory for the work, both in the budget and in the process."""
        has_headroom = self.headroom.fits(self._growth_bytes(work))
        slack = max(each.need_bytes for each in self.lanes)
        if self.ledger.fits(work.reserved_bytes + slack) and has_headroom:
            return True
        if not self._is_oldest(work) or self.headroom.wants_look:
            return False
        return self._num_running == 0 or (self.ledger.fits(work.reserved_bytes) and has_headroom)

    def _growth_bytes(self, work: Work) -> float:
        lane = self.lanes[work.lane]
        of_worker = None if lane.workers is None else lane.workers.need_bytes(work.reserved_bytes, lane.num_running)
        return self.headroom.growth(work.reserved_bytes, of_worker)

    def _is_oldest(self, work: Work) -> bool:
        """Whether the consumer can get nothing more until this work is done."""
        if not all(lane.is_empty for lane in self.lanes[work.lane + 1 :]):
            return False
        return self.source.is_first(work) if work.lane == 0 else not self._stages[work.lane - 1].slots

    def _start(self, work: Work, now: float) -> None:
        lane = self.lanes[work.lane]
        if not self.ledger.fits(work.reserved_bytes) and lane.name not in self._over_budget:
            self._over_budget.add(lane.name)
            self._report(
                f"stage {lane.name} needs {format_bytes(work.reserved_bytes)} for one element on top of the "
                f"{format_bytes(self.ledger.used_bytes)} in use, but memory_bytes is "
                f"{format_bytes(self.ledger.budget_bytes)}; such elements run alone, above the budget"
            )
        self.ledger.add(work.reserved_bytes)
        work.growth_bytes = self._growth_bytes(work)
        self._running_growth_bytes += work.growth_bytes
        self.headroom.started(work.reserved_bytes, work.growth_bytes)
        self._num_running += 1
        self._threads_running += lane.in_threads
        work.started_s = now
        if work.lane == 0:
            self.source.start(work)
        else:
            self._stages[work.lane - 1].start(work)

    def _pump(self) -> None:
        """Move finished elements on, as far as there is room; the end passes through empty lanes at once."""
        for index in range(len(self.lanes) - 1):
            lane, behind = self.lanes[index], self._stages[index]
            room = self.limit(index + 1) + 1
            while len(behind.waiting) < room and lane.head_is_done():
                failure = lane.head_failure()
                if failure is not None:
                    self._break_off(index, failure)
                    break
                behind.feed(lane.pop())
            behind.input_ended |= lane.has_ended

    def _break_off(self, index: int, failure: BaseException) -> None:
        """End the stream at a failed element: earlier elements are still delivered, later ones dropped."""
        self._breakage = failure
        for lane in self.lanes[: index + 1]:
            lane.clear()
        self._num_cancelled = index + 1
        self._stages[index].input_ended = True
