"""The state machine alone: any order of events keeps the order of elements, ends, and stays within the budget."""

import random
from collections import deque
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.pipeline.engine.element import Element
from headrace.pipeline.engine.headroom import MemoryLook
from headrace.pipeline.engine.lanes import OPEN, StageLane, Work
from headrace.pipeline.engine.ledger import Ledger
from headrace.pipeline.engine.position import Position
from headrace.pipeline.engine.rebatcher import Rebatcher
from headrace.pipeline.engine.source_lane import SourceLane
from headrace.pipeline.engine.state import Blocked, PipelineState, Pressure
from headrace.pipeline.transformations.slices import Rebatch

KIB = 1024


class World:
    """Workers and a consumer that do things in any order, without threads or clocks."""

    def __init__(
        self,
        batches: list[list[int]],
        *,
        cut: int | None = None,
        budget: int = 1000 * KIB,
        num_workers: int = 2,
        prefetch: int = 2,
        ratio: float = 1.0,
        more: Sequence[list[list[int]]] = (),
    ) -> None:
        self.segments = [batches, *more]
        self.ratio = ratio
        self.reports: list[str] = []
        rebatcher = Rebatcher(Rebatch(cut), Position(0, 0)) if cut else None
        lanes = [
            StageLane("map", None, rebatcher=None, in_threads=True, copies=0),
            StageLane("last", None, rebatcher=rebatcher, in_threads=True, copies=0),
        ]
        self.state = PipelineState(
            SourceLane(None, len(batches), 0, 0, num_segments=len(self.segments)),
            lanes,
            Ledger(budget),
            num_workers=num_workers,
            num_prefetch=prefetch,
            read_ahead_bytes=budget // 2,
            report=self.reports.append,
        )
        self.running: deque[Work] = deque()
        self.taken: list[tuple[int, ...]] = []
        self.ends: list[int] = []
        self.limit: int | None = None

    def look(self) -> None:
        """See the memory that the ledger's elements leave of the limit."""
        assert self.limit is not None
        used = sum(work.num_bytes_in for work in self.running) + self.state.ledger.used_bytes
        self.state.look(MemoryLook(max(0, self.limit - used), used, used))

    def start(self) -> bool:
        work = self.state.next_work(0.0)
        if work is None and self.state.headroom.wants_look and self.limit is not None:
            self.look()
            work = self.state.next_work(0.0)
        if work is not None:
            self.running.append(work)
        return work is not None

    def finish(self, index: int = 0, failure: Exception | None = None) -> None:
        work = self.running[index]
        del self.running[index]
        num_bytes = 0
        if failure is not None:
            work.failure = failure
        elif work.split == OPEN and work.lane == 0:
            work.num_splits = len(self.segments[work.segment])
        elif work.lane == 0:
            sizes = self.segments[work.segment][work.split]
            if work.source_batch < len(sizes):
                rows = sizes[work.source_batch]
                key = (work.split, work.source_batch)
                before, after = (Position(*key, segment=work.segment), Position(key[0], key[1] + 1, (), work.segment))
                work.element = Element(object(), rows, key, before, after, splits=(work.split,))
                num_bytes = rows * KIB
        else:
            num_bytes = int(work.num_bytes_in * self.ratio)
        self.state.finished(work, num_bytes=num_bytes)

    def take(self) -> bool:
        element = self.state.take()
        if element is not None and element.ends_segment:
            assert element.segment == len(self.ends)
            self.ends.append(len(self.taken))
        elif element is not None:
            assert element.segment == len(self.ends)
            self.taken.append(element.key)
        return element is not None

    def run(self, rng: random.Random, *, resize: bool = False) -> None:
        """Do random things until the consumer has everything; fail if nothing can be done before."""
        while not self.state.has_ended:
            if resize and rng.random() < 0.1:
                self.state.num_workers = rng.randint(1, 5)
                self.state.lanes[rng.randrange(3)].own_limit = rng.choice([None, 1, 2, 4])
                self.state.pressure = rng.choice(list(Pressure))
            actions = [self.start, self.take]
            if self.running:
                actions.append(lambda: self.finish(rng.randrange(len(self.running))) or True)
            rng.shuffle(actions)
            if not any(action() for action in [*actions, self.start]) and not self.state.has_ended:
                raise AssertionError(f"stands still: {[self.state.why_idle(i) for i in range(3)]}")


BATCHES = st.lists(st.lists(st.integers(1, 20), max_size=4), max_size=6)


@given(BATCHES, st.integers(0, 2**32), st.booleans())
def test_elements_leave_in_order_whatever_finishes_first_and_through_resizes(
    batches: list[list[int]], seed: int, resize: bool
) -> None:
    world = World(batches)
    world.run(random.Random(seed), resize=resize)
    assert world.taken == [(split, number) for split, sizes in enumerate(batches) for number in range(len(sizes))]


@given(BATCHES, st.integers(1, 30), st.integers(0, 2**32), st.booleans())
def test_cut_streams_lose_nothing_and_give_all_memory_back(
    batches: list[list[int]], cut: int, seed: int, resize: bool
) -> None:
    world = World(batches, cut=cut)
    world.run(random.Random(seed), resize=resize)
    num_rows = sum(sum(sizes) for sizes in batches)
    assert [key[0] for key in world.taken] == list(range(-(-num_rows // cut)))
    while world.running:
        world.finish()
    assert world.state.ledger.used_bytes == 0


@given(st.lists(BATCHES, min_size=1, max_size=6), st.integers(1, 30), st.integers(0, 2**32), st.booleans())
def test_segments_follow_each_other_and_each_begins_anew(
    segments: list[list[list[int]]], cut: int, seed: int, resize: bool
) -> None:
    rng = random.Random(seed)
    world = World(segments[0], more=segments[1:], cut=cut, budget=rng.choice([1, 100, 1000]) * KIB)
    world.run(rng, resize=resize)
    sizes = [-(-sum(sum(sizes) for sizes in batches) // cut) for batches in segments]
    assert [key[0] for key in world.taken] == [number for size in sizes for number in range(size)]
    assert world.ends == [sum(sizes[: number + 1]) for number in range(len(sizes))]
    while world.running:
        world.finish()
    assert world.state.ledger.used_bytes == 0


@settings(max_examples=300, deadline=None)
@given(BATCHES, st.integers(1, 30), st.integers(0, 2**32), st.sampled_from([0.5, 1.0, 2.5]))
def test_the_ledger_stays_within_a_budget_that_holds_one_element_of_each_lane(
    batches: list[list[int]], cut: int, seed: int, ratio: float
) -> None:
    # The rows of one output and of a source batch on either side, as large as they get, and once more for the result.
    budget = int(2.2 * (cut + 40) * KIB * max(1.0, ratio) ** 2)
    # Needs are learned from what was seen, so a batch of the largest size comes first.
    world = World([[20], *batches], cut=cut, budget=budget, ratio=ratio, num_workers=4, prefetch=8)
    world.run(random.Random(seed))
    assert world.state.ledger.peak_bytes <= world.state.ledger.budget_bytes
    assert not world.reports


@given(BATCHES, st.integers(1, 30), st.integers(0, 2**32))
def test_a_budget_too_small_for_anything_still_ends_one_element_at_a_time(
    batches: list[list[int]], cut: int, seed: int
) -> None:
    world = World(batches, cut=cut, budget=1, num_workers=4)
    rng = random.Random(seed)
    while not world.state.has_ended:
        progress = world.take() or world.start()
        assert len(world.running) <= 1
        assert progress or world.running or world.state.has_ended, "stands still"
        if world.running and (not progress or rng.random() < 0.5):
            world.finish()
    assert bool(world.reports) == any(sizes for sizes in batches)


def test_work_nearest_to_the_consumer_goes_first() -> None:
    world = World([[5, 5, 5]], num_workers=1)
    lanes = []
    for _ in range(6):
        assert world.start()
        lanes.append(world.running[-1].lane)
        world.finish()
    assert lanes == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("cut", [None, 30])
def test_reading_ahead_leaves_room_for_what_the_oldest_element_still_needs(cut: int | None) -> None:
    world = World([[20] for _ in range(12)], cut=cut, budget=(90 if cut is None else 110) * KIB, num_workers=4)
    while not world.state.has_ended:
        while world.start():
            pass
        if world.running:
            world.finish()
        else:
            world.take()
    assert not world.reports
    assert 60 * KIB < world.state.ledger.peak_bytes <= world.state.ledger.budget_bytes


def test_memory_wanted_by_a_lane_is_not_taken_by_one_behind_it() -> None:
    world = World([[10], [10], [10]], budget=25 * KIB, num_workers=8)
    while world.start():
        pass
    world.finish()
    while world.start():
        pass
    assert world.state.ledger.used_bytes <= 25 * KIB
    assert world.state.why_idle(0) in (Blocked.MEMORY, Blocked.LIMIT)


def test_one_lane_starts_one_element_until_its_need_is_known() -> None:
    world = World([[5], [5], [5]], num_workers=4)
    assert world.start()
    assert not world.start()
    assert world.state.why_idle(0) is Blocked.LIMIT
    world.finish()
    assert world.start()
    assert world.start()


def test_every_reason_to_start_nothing_is_told() -> None:
    world = World([[5, 5], [5]], num_workers=1, prefetch=0)
    assert world.state.why_idle(1) is Blocked.INPUT
    world.start()
    assert world.state.why_idle(0) is Blocked.LIMIT
    world.finish()
    world.start()
    assert world.state.why_idle(0) is Blocked.THREADS
    for _ in range(6):
        world.finish()
        if not world.start():
            break
    assert world.state.why_idle(2) in (Blocked.AHEAD, Blocked.INPUT)
    world.state.stop()
    assert world.state.why_idle(2) is Blocked.STOPPED


def test_under_pressure_nothing_is_made_ahead_and_then_one_thread_is_left() -> None:
    world = World([[1] * 50, [1] * 50], num_workers=3, prefetch=10)
    while world.start() or world.running:
        if world.running:
            world.finish()
    ready = len(world.state.lanes[2].slots)
    assert ready >= 10
    world.state.pressure = Pressure.PREFETCH
    for _ in range(ready - 3):
        world.take()
    assert not world.start()
    world.state.pressure = Pressure.WORKERS
    for _ in range(2):
        world.take()
    assert world.start()
    assert not world.start()


class Looking(World):
    """A consumer that looks ahead whenever it may take something, and notes what it saw."""

    def take(self) -> bool:
        used = self.state.ledger.used_bytes
        ready, is_all = self.state.peek(2)
        assert self.state.peek(9)[0][:2] == ready
        assert len(ready) <= 2
        assert self.state.ledger.used_bytes == used
        self.seen.append((len(self.taken), [element.key for element in ready], is_all))
        return super().take()

    seen: list[tuple[int, list[tuple[int, ...]], bool]]


@given(BATCHES, st.integers(1, 30), st.integers(0, 2**32))
def test_what_is_seen_ahead_comes_next_and_an_end_that_is_seen_is_the_end(
    batches: list[list[int]], cut: int, seed: int
) -> None:
    world, looking = World(batches, cut=cut), Looking(batches, cut=cut)
    looking.seen = []
    world.run(random.Random(seed))
    looking.run(random.Random(seed))
    assert looking.taken == world.taken
    for num_taken, ready, is_all in looking.seen:
        rest = world.taken[num_taken:]
        assert rest[: len(ready)] == ready
        if is_all:
            assert rest == ready
    assert not world.taken or any(ready for _, ready, _ in looking.seen)
    assert looking.state.peek(1) == ([], True)


def test_a_failure_that_comes_is_not_taken_for_the_end() -> None:
    world = World([[1], [1]], num_workers=1, prefetch=4)
    while world.start():
        split = world.running[-1].split if world.running[-1].lane == 0 else -1
        world.finish(failure=ValueError("second") if split == 1 else None)
    ready, is_all = world.state.peek(4)
    assert [element.key for element in ready] == [(0, 0)]
    assert not is_all


@pytest.mark.parametrize("lane", [0, 1, 2])
def test_a_failure_is_told_behind_everything_that_comes_before_it(lane: int) -> None:
    world = World([[1], [1], [1], [1]], num_workers=1)
    failure = ValueError("third")
    while True:
        if not world.start() and not world.running:
            break
        work = world.running[-1]
        split = work.split if work.lane == 0 else work.element.splits[0]
        world.finish(failure=failure if work.lane == lane and split == 2 else None)
        world.take()
    assert not world.take()
    assert world.taken == [(0, 0), (1, 0)]
    assert world.state.failure is failure
    assert world.state.ledger.used_bytes == 0


def test_a_failure_does_not_cut_a_batch_short() -> None:
    world = World([[3], [3], [3]], cut=4, num_workers=1)
    failure = ValueError("third")
    while world.start():
        work = world.running[-1]
        world.finish(failure=failure if work.split == 2 else None)
        world.take()
    world.take()
    assert [key[0] for key in world.taken] == [0]
    assert world.state.failure is failure


@given(BATCHES, st.integers(0, 100), st.integers(0, 2**32), st.booleans())
def test_with_too_little_memory_work_goes_on_one_element_at_a_time_and_never_stands_still(
    batches: list[list[int]], limit: int, seed: int, resize: bool
) -> None:
    world = World(batches, num_workers=4, prefetch=8)
    world.limit = limit * KIB
    world.look()
    world.run(random.Random(seed), resize=resize)
    assert world.taken == [(split, number) for split, sizes in enumerate(batches) for number in range(len(sizes))]


def test_without_memory_for_more_only_the_oldest_is_worked_on() -> None:
    world = World([[10] * 8] * 4, num_workers=4, prefetch=8)
    world.limit = 0
    world.look()
    while not world.state.has_ended:
        while world.start():
            assert len(world.running) == 1
        if world.running:
            world.finish()
        elif not world.take() and not world.state.has_ended:
            raise AssertionError("stands still")
    assert len(world.taken) == 32
