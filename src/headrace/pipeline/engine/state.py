"""`PipelineState`: decides what a running pipeline does next. Events in, instructions out.

No threads, locks or clocks: `threads.py` calls it under a lock and carries out what it says. The rules:

1. **Nearest to the consumer first.** A free worker takes the work of the last lane that has any, so elements are
   finished rather than begun, and no share of workers needs to be guessed for any stage.
2. **Order.** An element leaves a lane when everything before it has left.
3. **Ahead, but not far.** A lane holds at most a few elements that its successor has no room for yet.
4. **Memory.** Work is started only with a reservation for its result, and only if after that whatever the oldest
   undelivered element still needs on its way to the consumer would fit. So it can always go on. If even it does not fit
   (it is larger than the budget), it goes on alone, and that is reported.
5. **Headroom.** Nor is work started that the process has no memory for (see `headroom.py`), but for the oldest alone.
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
"""Elements a lane between others may finish ahead, beside those its workers are busy with."""


class Blocked(StrEnum):
    """Why a lane starts nothing."""

    INPUT = "no element to work on"
    LIMIT = "all workers of the stage are busy"
    AHEAD = "enough is done ahead"
    THREADS = "all threads are busy"
    MEMORY = "no memory for the result"
    STOPPED = "the pipeline is stopped"


class Pressure(StrEnum):
    """How near the memory limit of the machine or cgroup is.

    NONE -> PREFETCH: nothing is done ahead any more.
    PREFETCH -> WORKERS: one worker only; and back as memory becomes free.
    """

    NONE = "none"
    PREFETCH = "no prefetch"
    WORKERS = "one worker"


class PipelineState:
    """The lanes of a pipeline, and what may be started in them.

    Attributes:
        lanes: The source lane, then one lane for each group of stages.
        ledger: Bytes in flight.
        num_workers: Threads that may run stages at once.
        num_prefetch: Elements the last lane may finish ahead.
        read_ahead_bytes: Bytes that splits behind the first open one may hold.
        pressure: From the memory watchdog.
        headroom: What the process may still take.
        failure: What the consumer must be told; set when everything before it has been taken.
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
        """Start with empty lanes; `report` is told, once a lane, of elements larger than the budget."""
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
        """What a free worker should do, marked as started; None if there is nothing it may do."""
        self._pump()
        for index in range(len(self.lanes) - 1, -1, -1):
            found = self._candidate(index)
            if isinstance(found, Work):
                self._start(found, now)
                return found
            if found is Blocked.MEMORY:
                return None  # what lies further from the consumer must not take the memory this lane waits for
        return None

    def finished(self, work: Work, *, num_bytes: int = 0, is_view: bool = False) -> None:
        """A worker has done its work; `work.element` is the result, or `work.failure` is set.

        Args:
            work: From `next_work`.
            num_bytes: Bytes of the result.
            is_view: Whether the result points into the memory of the element it was made from.
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
        """The next element for the consumer, which owns its bytes from now on; None if none is ready."""
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
        """The next elements with rows that are ready, at most so many, and whether nothing comes behind them.

        They stay where they are, and charged.
        """
        self._pump()
        last = self.lanes[-1]
        ready = last.ready()
        batches = [element for element in ready if element.num_rows]
        is_all = len(batches) <= num_batches and last.ends_after(len(ready)) and self._breakage is None
        return batches[:num_batches], is_all

    def look(self, memory: MemoryLook) -> None:
        """What memory there is now."""
        self.headroom.look(memory, self._running_growth_bytes)

    def stop(self) -> None:
        """Drop everything; work in progress is dropped when it is done."""
        for lane in self.lanes:
            lane.clear()
        self._num_cancelled = len(self.lanes)

    # ---- questions

    @property
    def has_batch(self) -> bool:
        """Whether `take` has something to say: an element, an end or a failure."""
        self._pump()
        last = self.lanes[-1]
        return last.head_is_done() or last.has_ended

    @property
    def has_ended(self) -> bool:
        """Whether the consumer has taken everything."""
        return self.failure is not None or self.lanes[-1].has_ended

    def has_work(self) -> bool:
        """Whether `next_work` would return some, or might after a look at the memory."""
        self._pump()
        for index in range(len(self.lanes) - 1, -1, -1):
            found = self._candidate(index)
            if isinstance(found, Work):
                return True
            if found is Blocked.MEMORY:
                return self.headroom.wants_look
        return False

    def why_idle(self, index: int) -> Blocked | None:
        """Why a lane starts nothing, or None if it could."""
        found = self._candidate(index)
        return None if isinstance(found, Work) else found

    def limit(self, index: int) -> int:
        """Elements a lane may work on at once."""
        return self.lanes[index].own_limit or self.num_workers

    # ---- rules

    def _candidate(self, index: int) -> Work | Blocked:
        """The work a lane could start now."""
        if index < self._num_cancelled:
            return Blocked.STOPPED
        lane = self.lanes[index]
        found = self._next_read() if index == 0 else self._next_element(index)
        if isinstance(found, Blocked):
            return found
        if lane.num_running >= (self.limit(index) if lane.estimator.is_known else 1):
            return Blocked.LIMIT  # one at a time until it is known how large results are
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
        """Whether there is memory to start the work: in the budget, and in the process."""
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
        """Whether the consumer gets nothing more unless this is done."""
        if not all(lane.is_empty for lane in self.lanes[work.lane + 1 :]):
            return False
        return self.source.is_first(work) if work.lane == 0 else not self._stages[work.lane - 1].slots

    def _start(self, work: Work, now: float) -> None:
        lane = self.lanes[work.lane]
        if not self.ledger.fits(work.reserved_bytes) and lane.name not in self._over_budget:
            self._over_budget.add(lane.name)
            self._report(
                f"stage {lane.name} needs {format_bytes(work.reserved_bytes)} for one element beside the "
                f"{format_bytes(self.ledger.used_bytes)} it is made from, but memory_bytes is "
                f"{format_bytes(self.ledger.budget_bytes)}: such elements go on alone, above the budget"
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
        """Let elements that are done move on, as far as there is room; an end passes through empty lanes at once."""
        for index in range(len(self.lanes) - 1):
            lane, behind = self.lanes[index], self._stages[index]
            room = self.limit(index + 1) + 1
            while len(behind.waiting) < room and lane.head_is_done():
                failure = lane.head_failure()
                if failure is not None:
                    self._break_off(index, failure)
                    break
                behind.feed(lane.pop())
            if lane.has_ended and not behind.input_ended:
                behind.end_input(failed=self._breakage is not None)

    def _break_off(self, index: int, failure: BaseException) -> None:
        """The stream ends at a failed element: what is before it is still delivered, what is behind it is dropped."""
        self._breakage = failure
        for lane in self.lanes[: index + 1]:
            lane.clear()
        self._num_cancelled = index + 1
        self._stages[index].end_input(failed=True)
