"""Lanes: the queues of a running pipeline, one for the source and one for each group of stages.

An element waits in a lane, is worked on, and keeps its place in the order until everything before it has left::

    lane        waiting         slots: in work (w) or done (d)
    source      items 7, 8 ..   [item 5: d d w]  [item 6: d w]
    map         e9              e8:w  e7:d  e6:w        <- e7 is done, but e6 goes first
    batch       e5              e4:d                     -> next lane or consumer

Plain data without locks; `state.py` decides what is started.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from headrace.pipeline.cutting import Cutter
from headrace.pipeline.elements import Element
from headrace.pipeline.ledger import Estimator, RecentMax

__all__ = ["Lane", "SourceLane", "StageLane", "Work"]


@dataclass(slots=True, eq=False)
class Work:
    """One call of a worker: read the next piece of an item, or run a group of stages on an element.

    Attributes:
        lane: Position of the lane.
        element: The element to work on, then the result; None for a read that is not done.
        item: Source item to read, for the source lane.
        piece: Piece of it.
        num_bytes_in: Bytes of the element before it is worked on.
        reserved_bytes: Reserved in the ledger until it is done.
        started_s: When it was started.
        done: Whether it is.
        failure: What went wrong.
    """

    lane: int
    element: Element | None
    item: int = -1
    piece: int = 0
    num_bytes_in: int = 0
    reserved_bytes: int = 0
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
    """

    name: str
    own_limit: int | None
    num_running: int
    in_threads: bool
    estimator: Estimator

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

    def clear(self) -> None:
        """Drop everything, and accept no more."""
        ...


class StageLane:
    """Elements in front of, in and behind the workers of a group of stages."""

    def __init__(
        self, name: str, own_limit: int | None, *, cutter: Cutter | None, in_threads: bool, copies: float
    ) -> None:
        """An empty lane.

        Args:
            name: Of the group.
            own_limit: Elements worked on at once, or None for as many as there are threads.
            cutter: Cuts the stream that enters.
            in_threads: Whether threads of this process do the work.
            copies: Copies of an element's bytes that its work needs beside the result.
        """
        self.name = name
        self.own_limit = own_limit
        self.in_threads = in_threads
        self.num_running = 0
        self.estimator = Estimator(copies=copies)
        self.cutter = cutter
        self.waiting: deque[Element] = deque()
        self.slots: deque[Work] = deque()
        self.input_ended = False
        self._largest_input = RecentMax()

    @property
    def need_bytes(self) -> int:
        need = self.estimator.reserve(self._largest_input.value)
        if self.waiting or self.slots:
            return need
        missing = 1.0 if self.cutter is None else (1.0 - self.cutter.filled_ratio) * self.cutter.num_ranks
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
        if self.cutter is None:
            self._largest_input.add(element.num_bytes)
            self.waiting.append(element)
            return
        if element.num_rows:
            self._largest_input.add(element.num_bytes * self.cutter.num_rows / element.num_rows)
        self.waiting.extend(self.cutter.feed(element))

    def end_input(self, *, failed: bool) -> None:
        """No more elements will come; what is left in the cutter is cut, unless the stream broke off."""
        if self.input_ended:
            return
        self.input_ended = True
        if self.cutter is not None and not failed:
            self.waiting.extend(self.cutter.finish())

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

    def clear(self) -> None:
        for element in self.waiting:
            element.release()
        for work in self.slots:
            if work.done and work.element is not None:
                work.element.release()
        self.waiting.clear()
        self.slots.clear()
        self.input_ended = True


@dataclass(slots=True, eq=False)
class _Item:
    """A source item that is being read."""

    number: int
    next_piece: int = 0
    running: bool = False
    exhausted: bool = False
    pieces: deque[Element] = field(default_factory=deque)
    failure: BaseException | None = None


class SourceLane:
    """Items of the source, several read at once, whose pieces leave in order."""

    in_threads = True

    def __init__(
        self, own_limit: int | None, num_items: int, first_item: int, first_piece: int, *, first_bytes: int = 0
    ) -> None:
        """Start at a piece of an item; `first_bytes` is how large a piece is thought to be before one is read."""
        self.name = "source"
        self.own_limit = own_limit
        self.num_running = 0
        self.estimator = Estimator()
        self._num_items = num_items
        self._next_item = first_item
        self._first_piece = first_piece
        self._items: deque[_Item] = deque()
        self.ahead_bytes = 0
        self._first_bytes = first_bytes

    @property
    def need_bytes(self) -> int:
        return self.estimator.reserve(1) if self.estimator.is_known else self._first_bytes

    @property
    def queue_depth(self) -> int:
        return self._num_items - self._next_item

    @property
    def is_empty(self) -> bool:
        return not self._items

    @property
    def has_ended(self) -> bool:
        self._drop_read_items()
        return not self._items and self._next_item >= self._num_items

    @property
    def num_ready(self) -> int:
        """Pieces of the first item that are ready to leave."""
        return len(self._items[0].pieces) if self._items else 0

    def candidates(self, limit: int) -> list[Work]:
        """Reads that could be started, in order of the items: the next piece of each item nobody reads right now."""
        self._drop_read_items()
        found = []
        num_open = 0
        for item in self._items:
            if not item.exhausted:
                num_open += 1
                if not item.running:
                    found.append(Work(0, None, item.number, item.next_piece))
        if num_open < limit and self._next_item < self._num_items:
            found.append(Work(0, None, self._next_item, self._first_piece))
        return found

    def is_first(self, work: Work) -> bool:
        """Whether everything waits for this read."""
        self._drop_read_items()
        if not self._items:
            return True
        return self._items[0].number == work.item and not self._items[0].pieces

    def is_head_item(self, work: Work) -> bool:
        """Whether the read belongs to the first item whose pieces have not all left."""
        return not self._items or self._items[0].number == work.item

    def start(self, work: Work) -> None:
        """Mark the piece as being read."""
        if work.item == self._next_item:
            self._items.append(_Item(work.item, work.piece))
            self._next_item += 1
            self._first_piece = 0
        self._item(work.item).running = True
        self.num_running += 1

    def finish(self, work: Work) -> None:
        """Take in the piece that was read; a work without an element is the end of its item."""
        item = self._item(work.item)
        item.running = False
        if work.failure is not None:
            item.failure, item.exhausted = work.failure, True
        elif work.element is None:
            item.exhausted = True
        else:
            item.next_piece += 1
            item.pieces.append(work.element)
            self.ahead_bytes += work.element.num_bytes
            self.estimator.learn(1, work.element.num_bytes)

    def holds(self, work: Work) -> bool:
        """Whether the item is still of interest."""
        return any(item.number == work.item for item in self._items)

    def head_is_done(self) -> bool:
        self._drop_read_items()
        return bool(self._items) and (bool(self._items[0].pieces) or self._items[0].failure is not None)

    def head_failure(self) -> BaseException | None:
        first = self._items[0] if self._items else None
        return first.failure if first is not None and not first.pieces else None

    def pop(self) -> Element:
        element = self._items[0].pieces.popleft()
        self.ahead_bytes -= element.num_bytes
        return element

    def clear(self) -> None:
        for item in self._items:
            for element in item.pieces:
                element.release()
        self._items.clear()
        self._next_item = self._num_items

    def _item(self, number: int) -> _Item:
        return next(item for item in self._items if item.number == number)

    def _drop_read_items(self) -> None:
        while self._items and self._items[0].exhausted and not self._items[0].pieces and not self._items[0].failure:
            self._items.popleft()
