"""`SourceLane`: items of the source, several of them read at once, whose pieces leave in order."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from headrace.pipeline.engine.element import Element
from headrace.pipeline.engine.headroom import WorkerMemory
from headrace.pipeline.engine.lanes import Work
from headrace.pipeline.engine.ledger import Estimator

__all__ = ["SourceLane"]


@dataclass(slots=True, eq=False)
class _Item:
    """A source item that is being read."""

    number: int
    next_piece: int = 0
    running: bool = False
    pieces: deque[Element] = field(default_factory=deque)
    failure: BaseException | None = None


class SourceLane:
    """Items of the source, several read at once, whose pieces leave in order."""

    in_threads = True
    workers: WorkerMemory | None = None

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
        self._items: deque[_Item] = deque()  # hundreds, where items are small and much is read ahead
        self._by_number: dict[int, _Item] = {}
        self._open: dict[int, _Item] = {}  # those with more to read, in order
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
        found = [Work(0, None, item.number, item.next_piece) for item in self._open.values() if not item.running]
        if len(self._open) < limit and self._next_item < self._num_items:
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
            item = _Item(work.item, work.piece)
            self._items.append(item)
            self._by_number[work.item] = self._open[work.item] = item
            self._next_item += 1
            self._first_piece = 0
        self._by_number[work.item].running = True
        self.num_running += 1

    def finish(self, work: Work) -> None:
        """Take in the piece that was read; a work without an element is the end of its item."""
        item = self._by_number[work.item]
        item.running = False
        if work.failure is not None:
            item.failure = work.failure
            del self._open[work.item]
        elif work.element is None:
            del self._open[work.item]
        else:
            item.next_piece += 1
            item.pieces.append(work.element)
            self.ahead_bytes += work.element.num_bytes
            self.estimator.learn(1, work.element.num_bytes)

    def holds(self, work: Work) -> bool:
        """Whether the item is still of interest."""
        return work.item in self._by_number

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
        for items in (self._items, self._by_number, self._open):
            items.clear()
        self._next_item = self._num_items

    def _drop_read_items(self) -> None:
        while self._items and not (
            self._items[0].number in self._open or self._items[0].pieces or self._items[0].failure
        ):
            del self._by_number[self._items.popleft().number]
