"""`SourceLane`: reads several splits of the source at once, and returns their batches in order."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from headrace.pipeline.engine.element import Element
from headrace.pipeline.engine.headroom import WorkerMemory
from headrace.pipeline.engine.lanes import OPEN, Work
from headrace.pipeline.engine.ledger import Estimator
from headrace.pipeline.engine.position import Position

__all__ = ["SourceLane"]

MAX_SEGMENTS = 4
"""Maximum number of open segments. The memory of open sources (file footers, a plan) is not in the memory budget, and
small segments would be opened by the hundred."""

Place = tuple[int, int]
"""Segment and split number."""


@dataclass(slots=True, eq=False)
class _Split:
    """A split that is being read; or, after the splits of a segment, the end of the segment."""

    place: Place
    next_batch: int = 0
    running: bool = False
    batches: deque[Element] = field(default_factory=deque)
    failure: BaseException | None = None


class SourceLane:
    """Reads several splits of the source at once, and returns their batches in order.

    A source may have several segments. A marker follows the batches of each segment. The next segment is opened once
    all splits of the previous one are being read.
    """

    in_threads = True
    workers: WorkerMemory | None = None

    def __init__(
        self,
        own_limit: int | None,
        num_splits: int,
        first_split: int,
        first_batch: int,
        *,
        segment: int = 0,
        num_segments: int = 1,
        first_bytes: int = 0,
    ) -> None:
        """Start at a batch of a split.

        Args:
            own_limit: Maximum number of splits read at once; None for the number of threads.
            num_splits: Number of splits of the first segment.
            first_split: First split to read.
            first_batch: Number of batches of that split to skip.
            segment: Segment of that split.
            num_segments: Total number of segments.
            first_bytes: Assumed size of a batch before one is read.
        """
        self.name = "source"
        self.own_limit = own_limit
        self.num_running = 0
        self.estimator = Estimator()
        self._num_segments = num_segments
        self._segment = segment  # whose splits are being started, or which is opened next
        self._num_splits: int | None = num_splits  # of the segment; None until it is open
        self._is_opening = False
        self._next_split = first_split
        self._first_batch = first_batch
        self._splits: deque[_Split] = deque()  # hundreds, if splits are small and read-ahead is large
        self._by_place: dict[Place, _Split] = {}
        self._open: dict[Place, _Split] = {}  # splits with more to read, in order
        self.ahead_bytes = 0
        self._first_bytes = first_bytes
        self._end_segment()

    @property
    def need_bytes(self) -> int:
        return self.estimator.reserve(1) if self.estimator.is_known else self._first_bytes

    @property
    def queue_depth(self) -> int:
        """Number of splits not being read yet; a segment that is not open counts as one."""
        if self._num_splits is None:
            return self._num_segments - self._segment
        return self._num_splits - self._next_split + self._num_segments - self._segment - 1

    @property
    def is_empty(self) -> bool:
        return not self._splits

    @property
    def has_ended(self) -> bool:
        self._drop_read_splits()
        return not self._splits and self._all_begun

    @property
    def num_ready(self) -> int:
        """Number of batches of the first split that are ready to leave."""
        return len(self._splits[0].batches) if self._splits else 0

    def candidates(self, limit: int) -> list[Work]:
        """Reads that could start, in the order of splits: the next batch of each split without a running read.

        If all splits of a segment are being read, opening the next segment is also a read.
        """
        self._drop_read_splits()
        found = [
            Work(0, None, split.place[1], split.next_batch, split.place[0])
            for split in self._open.values()
            if not split.running
        ]
        if self._num_splits is not None:
            if len(self._open) < limit:
                found.append(Work(0, None, self._next_split, self._first_batch, self._segment))
        elif not self._all_begun and not self._is_opening and self._segment - self._first_segment < MAX_SEGMENTS:
            found.append(Work(0, None, OPEN, segment=self._segment))
        return found

    def is_first(self, work: Work) -> bool:
        """Whether all other work waits for this read."""
        self._drop_read_splits()
        if not self._splits:
            return True
        return self._splits[0].place == (work.segment, work.split) and not self._splits[0].batches

    def is_head_split(self, work: Work) -> bool:
        """Whether the read belongs to the first split whose batches have not all left."""
        return not self._splits or self._splits[0].place == (work.segment, work.split)

    def start(self, work: Work) -> None:
        """Mark the batch as being read."""
        self.num_running += 1
        if work.split == OPEN:
            self._is_opening = True
            return
        place = work.segment, work.split
        if place not in self._by_place:
            self._add(_Split(place, work.source_batch))
            self._open[place] = self._by_place[place]
            self._next_split += 1
            self._first_batch = 0
            self._end_segment()
        self._by_place[place].running = True

    def finish(self, work: Work) -> None:
        """Add a batch that was read; a work without an element is the end of its split."""
        if work.split == OPEN:
            self._opened(work)
            return
        place = work.segment, work.split
        split = self._by_place[place]
        split.running = False
        if work.failure is not None:
            split.failure = work.failure
            del self._open[place]
        elif work.element is None:
            del self._open[place]
        else:
            split.next_batch += 1
            split.batches.append(work.element)
            self.ahead_bytes += work.element.num_bytes
            self.estimator.learn(1, work.element.num_bytes)

    def head_is_done(self) -> bool:
        self._drop_read_splits()
        return bool(self._splits) and (bool(self._splits[0].batches) or self._splits[0].failure is not None)

    def head_failure(self) -> BaseException | None:
        first = self._splits[0] if self._splits else None
        return first.failure if first is not None and not first.batches else None

    def pop(self) -> Element:
        element = self._splits[0].batches.popleft()
        self.ahead_bytes -= element.num_bytes
        return element

    def ready(self) -> list[Element]:
        self._drop_read_splits()
        found: list[Element] = []
        for split in self._splits:
            found += split.batches
            if split.place in self._open or split.failure is not None:
                break
        return found

    def ends_after(self, num_elements: int) -> bool:
        is_read = self._all_begun and not self._open
        has_failed = any(split.failure is not None for split in self._splits)
        return is_read and not has_failed and sum(len(split.batches) for split in self._splits) == num_elements

    def clear(self) -> None:
        for split in self._splits:
            for element in split.batches:
                element.release()
        for splits in (self._splits, self._by_place, self._open):
            splits.clear()
        self._end_source()

    @property
    def _all_begun(self) -> bool:
        """Whether all splits of all segments were started."""
        return self._segment == self._num_segments

    @property
    def _first_segment(self) -> int:
        return self._splits[0].place[0] if self._splits else self._segment

    def _opened(self, work: Work) -> None:
        self._is_opening = False
        if work.failure is None:
            self._num_splits = work.num_splits
            self._end_segment()
        else:
            self._add(_Split((work.segment, OPEN), failure=work.failure))
            self._end_source()

    def _add(self, split: _Split) -> None:
        self._splits.append(split)
        self._by_place[split.place] = split

    def _end_segment(self) -> None:
        """If all splits of the segment were started, add its end, and open the next segment."""
        if self._num_splits is None or self._next_split < self._num_splits:
            return
        end = Position(self._num_splits, 0, segment=self._segment)
        marker = Element(None, 0, (end.split, 0), end, end, ends_segment=True)
        self._add(_Split((self._segment, end.split), batches=deque([marker])))
        self._segment += 1
        self._num_splits, self._next_split, self._first_batch = None, 0, 0

    def _end_source(self) -> None:
        self._segment, self._num_splits = self._num_segments, None

    def _drop_read_splits(self) -> None:
        while self._splits and not (
            self._splits[0].place in self._open or self._splits[0].batches or self._splits[0].failure
        ):
            del self._by_place[self._splits.popleft().place]
