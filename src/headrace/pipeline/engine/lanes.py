"""Lanes: the queues of a running pipeline, one for the source and one for each group of stages.

An element waits in a lane, is worked on, and keeps its place in the order until everything before it has left::

    lane        waiting         slots: in work (w) or done (d)
    source      splits 7, 8 ..  [split 5: d d w]  [split 6: d w]       (then the end of the segment, and the next one)
    map         e9              e8:w  e7:d  e6:w        <- e7 is done, but e6 goes first
    batch       e5              e4:d                     -> next lane or consumer

Plain data without locks; `state.py` decides what is started.
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
"""In the place of a split: open the segment's source, to learn how many splits it has."""


@dataclass(slots=True, eq=False)
class Work:
    """One call of a worker: open a source or read the next batch of a split, or run a group of stages on an element.

    Attributes:
        lane: Position of the lane.
        element: The element to work on, then the result; None for a read that is not done.
        split: Split to read, for the source lane; `OPEN` for none yet.
        source_batch: Batch of it.
        segment: Whose split it is.
        num_splits: Of a segment that was opened.
        num_bytes_in: Bytes of the element before it is worked on.
        reserved_bytes: Reserved in the ledger until it is done.
        growth_bytes: By how much the process may grow until then.
        started_s: When it was started.
        done: Whether it is.
        failure: What went wrong.
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
    """What both kinds of lanes have.

    Attributes:
        name: Of the group.
        own_limit: Elements worked on at once, or None for as many as there are threads.
        num_running: Elements being worked on.
        in_threads: Whether the work occupies a thread's CPU; work of other processes does not.
        estimator: Predicts the bytes of results.
        workers: What worker processes take; None if threads do the work.
    """

    name: str
    own_limit: int | None
    num_running: int
    in_threads: bool
    estimator: Estimator
    workers: WorkerMemory | None

    @property
    def need_bytes(self) -> int:
        """Bytes that must be free for the lane's next result: its reservation, and the input that is still to come."""
        ...

    @property
    def queue_depth(self) -> int:
        """Elements that wait in front of the workers."""
        ...

    @property
    def is_empty(self) -> bool:
        """Whether no element is in it."""
        ...

    @property
    def has_ended(self) -> bool:
        """Whether no element is in it and none will come."""
        ...

    def head_is_done(self) -> bool:
        """Whether the next element in order can leave."""
        ...

    def head_failure(self) -> BaseException | None:
        """What went wrong with the next element in order."""
        ...

    def pop(self) -> Element:
        """The next element in order."""
        ...

    def ready(self) -> list[Element]:
        """Elements that can leave now, in order; they stay."""
        ...

    def ends_after(self, num_elements: int) -> bool:
        """Whether so many elements are all that will ever leave."""
        ...

    def clear(self) -> None:
        """Drop everything, and accept no more."""
        ...


class StageLane:
    """Elements in front of, in and behind the workers of a group of stages."""

    def __init__(
        self, name: str, own_limit: int | None, *, rebatcher: Rebatcher | None, in_threads: bool, copies: float
    ) -> None:
        """An empty lane.

        Args:
            name: Of the group.
            own_limit: Elements worked on at once, or None for as many as there are threads.
            rebatcher: Regroups the stream that enters.
            in_threads: Whether threads of this process do the work.
            copies: Copies of an element's bytes that its work needs beside the result.
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
        """Let an element in."""
        if self.rebatcher is None:
            self._largest_input.add(element.num_bytes)
            self.waiting.append(element)
            return
        if element.num_rows:
            self._largest_input.add(element.num_bytes * self.rebatcher.num_rows / element.num_rows)
        self.waiting.extend(self.rebatcher.feed(element))

    def start(self, work: Work) -> None:
        """Move the first waiting element into work."""
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
