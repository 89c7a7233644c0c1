"""Lanes: the queues of a running pipeline, one for the source and one for each group of stages.

An element waits in a lane, is processed, and leaves after all elements before it have left::

    lane  waiting   slots: in work (w) or done (d)
    source      splits 7, 8 ..  [split 5: d d w]  [split 6: d w]       (then the end of the segment, and the next one)
    map         e9              e8:w  e7:d  e6:w        <- e7 is done, but e6 goes first
    batch       e5              e4:d                     -> next lane or consumer

Plain data without locks; `state.py` decides which work starts.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import takewhile
from typing import Protocol

from headrace.pipeline.engine.element import Element
from headrace.pipeline.engine.headroom import WorkerMemory
from headrace.pipeline.engine.ledger import Estimator, RecentMax
from headrace.pipeline.engine.rebatcher import Rebatcher

__all__ = ["OPEN", "Lane", "StageLane", "Work"]

OPEN = -1
"""Used instead of a split number for opening the segment's source, which gives the number of splits."""


@dataclass(slots=True, eq=False)
class Work:
    """One call of a worker: open a source, read the next batch of a split, or run a group of stages on an element.

    Attributes:
        lane: Position of the lane.
        element: The element to process, then the result; None for an unfinished read.
        split: Split to read, for the source lane; `OPEN` for none yet.
        source_batch: Number of the batch within the split.
        segment: Segment of the split.
        num_splits: Number of splits of an opened segment.
        num_bytes_in: Bytes of the element before processing.
        reserved_bytes: Bytes reserved in the memory budget until the work is done.
        growth_bytes: Expected growth of the process's memory until then.
        started_s: Start time.
        done: Whether the work is done.
        failure: Error of the work.
    """

    lane: int
    element: Element | None
    split: int = OPEN
    source_batch: int = 0
    segment: int = 0
    num_splits: int = 0
    num_bytes_in: int = 0
    reserved_bytes: int = 0
    growth_bytes: float = 0.0
    started_s: float = 0.0
    done: bool = False
    failure: BaseException | None = None


class Lane(Protocol):
    """Common interface of lanes.

    Attributes:
        name: Name of the group of stages.
        own_limit: Maximum number of elements processed at once; None for the number of threads.
        num_running: Number of elements being processed.
        in_threads: Whether the work uses CPU of a thread of this process, not of a worker process.
        estimator: Predicts the size of results.
        workers: Limits of worker processes; None if threads do the work.
    """

    name: str
    own_limit: int | None
    num_running: int
    in_threads: bool
    estimator: Estimator
    workers: WorkerMemory | None

    @property
    def need_bytes(self) -> int:
        """Bytes that must be free for the lane's next result: its reservation, and the input that is still missing."""
        ...

    @property
    def queue_depth(self) -> int:
        """Number of elements waiting for workers."""
        ...

    @property
    def is_empty(self) -> bool:
        """Whether the lane has no elements."""
        ...

    @property
    def has_ended(self) -> bool:
        """Whether the lane has no elements and will not receive any."""
        ...

    def head_is_done(self) -> bool:
        """Whether the next element in order can leave."""
        ...

    def head_failure(self) -> BaseException | None:
        """The error of the next element in order, if any."""
        ...

    def pop(self) -> Element:
        """Remove and return the next element in order."""
        ...

    def ready(self) -> list[Element]:
        """Elements that can leave now, in order, without removing them."""
        ...

    def ends_after(self, num_elements: int) -> bool:
        """Whether only `num_elements` more elements will leave."""
        ...

    def clear(self) -> None:
        """Drop all elements, and accept no more."""
        ...


class StageLane:
    """Elements waiting for, in, and finished by the workers of a group of stages."""

    def __init__(
        self, name: str, own_limit: int | None, *, rebatcher: Rebatcher | None, in_threads: bool, copies: float
    ) -> None:
        """Create an empty lane.

        Args:
            name: Name of the group of stages.
            own_limit: Maximum number of elements processed at once; None for the number of threads.
            rebatcher: Regroups the incoming stream.
            in_threads: Whether threads of this process do the work.
            copies: Number of copies of an element that its processing needs in addition to the result.
        """
        self.name = name
        self.own_limit = own_limit
        self.in_threads = in_threads
        self.workers = None if in_threads else WorkerMemory()
        self.num_running = 0
        self.estimator = Estimator(copies=copies)
        self.rebatcher = rebatcher
        self.waiting: deque[Element] = deque()
        self.slots: deque[Work] = deque()
        self.input_ended = False
        self._largest_input = RecentMax()

    @property
    def need_bytes(self) -> int:
        need = self.estimator.reserve(self._largest_input.value)
        if self.waiting or self.slots:
            return need
        missing = 1.0 if self.rebatcher is None else (1.0 - self.rebatcher.filled_ratio) * self.rebatcher.num_ranks
        return need + int(self._largest_input.value * missing)

    @property
    def queue_depth(self) -> int:
        return len(self.waiting)

    @property
    def is_empty(self) -> bool:
        return not self.waiting and not self.slots

    @property
    def has_ended(self) -> bool:
        return self.input_ended and not self.waiting and not self.slots

    def feed(self, element: Element) -> None:
        """Add an element."""
        if self.rebatcher is None:
            self._largest_input.add(element.num_bytes)
            self.waiting.append(element)
            return
        if element.num_rows:
            self._largest_input.add(element.num_bytes * self.rebatcher.num_rows / element.num_rows)
        self.waiting.extend(self.rebatcher.feed(element))

    def start(self, work: Work) -> None:
        """Start processing the first waiting element."""
        work.element = self.waiting.popleft()
        self.slots.append(work)
        self.num_running += 1

    def head_is_done(self) -> bool:
        return bool(self.slots) and self.slots[0].done

    def head_failure(self) -> BaseException | None:
        return self.slots[0].failure if self.slots else None

    def pop(self) -> Element:
        element = self.slots.popleft().element
        assert element is not None
        return element

    def ready(self) -> list[Element]:
        done = takewhile(lambda work: work.done and work.failure is None, self.slots)
        return [work.element for work in done if work.element is not None]

    def ends_after(self, num_elements: int) -> bool:
        return self.input_ended and not self.waiting and len(self.slots) == num_elements

    def clear(self) -> None:
        for element in self.waiting:
            element.release()
        for work in self.slots:
            if work.done and work.element is not None:
                work.element.release()
        self.waiting.clear()
        self.slots.clear()
        self.input_ended = True
