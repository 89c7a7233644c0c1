"""`SourceLane`: splits of the source, several of them read at once, whose batches leave in order."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from headrace.pipeline.engine.element import Element
from headrace.pipeline.engine.headroom import WorkerMemory
from headrace.pipeline.engine.lanes import Work
from headrace.pipeline.engine.ledger import Estimator

__all__ = ["SourceLane"]


@dataclass(slots=True, eq=False)
class _Split:
    """A split that is being read."""

    number: int
    next_batch: int = 0
    running: bool = False
    batches: deque[Element] = field(default_factory=deque)
    failure: BaseException | None = None


class SourceLane:
    """Splits of the source, several read at once, whose batches leave in order."""

    in_threads = True
    workers: WorkerMemory | None = None

    def __init__(
        self, own_limit: int | None, num_splits: int, first_split: int, first_batch: int, *, first_bytes: int = 0
    ) -> None:
        """Start at a batch of an split; `first_bytes` is how large a batch is thought to be before one is read."""
        self.name = "source"
        self.own_limit = own_limit
        self.num_running = 0
        self.estimator = Estimator()
        self._num_splits = num_splits
        self._next_split = first_split
        self._first_batch = first_batch
        self._splits: deque[_Split] = deque()  # hundreds, where splits are small and much is read ahead
        self._by_number: dict[int, _Split] = {}
        self._open: dict[int, _Split] = {}  # those with more to read, in order
        self.ahead_bytes = 0
        self._first_bytes = first_bytes

    @property
    def need_bytes(self) -> int:
        return self.estimator.reserve(1) if self.estimator.is_known else self._first_bytes

    @property
    def queue_depth(self) -> int:
        return self._num_splits - self._next_split

    @property
    def is_empty(self) -> bool:
        return not self._splits

    @property
    def has_ended(self) -> bool:
        self._drop_read_splits()
        return not self._splits and self._next_split >= self._num_splits

    @property
    def num_ready(self) -> int:
        """Pieces of the first split that are ready to leave."""
        return len(self._splits[0].batches) if self._splits else 0

    def candidates(self, limit: int) -> list[Work]:
        """Reads that could be started, in order of the splits: the next batch of each split nobody reads right now."""
        self._drop_read_splits()
        found = [Work(0, None, split.number, split.next_batch) for split in self._open.values() if not split.running]
        if len(self._open) < limit and self._next_split < self._num_splits:
            found.append(Work(0, None, self._next_split, self._first_batch))
        return found

    def is_first(self, work: Work) -> bool:
        """Whether everything waits for this read."""
        self._drop_read_splits()
        if not self._splits:
            return True
        return self._splits[0].number == work.split and not self._splits[0].batches

    def is_head_split(self, work: Work) -> bool:
        """Whether the read belongs to the first split whose batches have not all left."""
        return not self._splits or self._splits[0].number == work.split

    def start(self, work: Work) -> None:
        """Mark the batch as being read."""
        if work.split == self._next_split:
            split = _Split(work.split, work.source_batch)
            self._splits.append(split)
            self._by_number[work.split] = self._open[work.split] = split
            self._next_split += 1
            self._first_batch = 0
        self._by_number[work.split].running = True
        self.num_running += 1

    def finish(self, work: Work) -> None:
        """Take in the batch that was read; a work without an element is the end of its split."""
        split = self._by_number[work.split]
        split.running = False
        if work.failure is not None:
            split.failure = work.failure
            del self._open[work.split]
        elif work.element is None:
            del self._open[work.split]
        else:
            split.next_batch += 1
            split.batches.append(work.element)
            self.ahead_bytes += work.element.num_bytes
            self.estimator.learn(1, work.element.num_bytes)

    def holds(self, work: Work) -> bool:
        """Whether the split is still of interest."""
        return work.split in self._by_number

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
            if split.number in self._open or split.failure is not None:
                break
        return found

    def ends_after(self, num_elements: int) -> bool:
        is_read = self._next_split >= self._num_splits and not self._open
        has_failed = any(split.failure is not None for split in self._splits)
        return is_read and not has_failed and sum(len(split.batches) for split in self._splits) == num_elements

    def clear(self) -> None:
        for split in self._splits:
            for element in split.batches:
                element.release()
        for splits in (self._splits, self._by_number, self._open):
            splits.clear()
        self._next_split = self._num_splits

    def _drop_read_splits(self) -> None:
        while self._splits and not (
            self._splits[0].number in self._open or self._splits[0].batches or self._splits[0].failure
        ):
            del self._by_number[self._splits.popleft().number]
