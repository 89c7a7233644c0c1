"""Sources that follow each other in one stream: each gives what it gives alone, and the next is prepared meanwhile."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import ConfigError, DataError, PipelineError
from headrace.logs.source import Source
from headrace.pipeline import BatchIterator, Pipeline, from_source, from_sources
from headrace.pipeline.engine.position import in_first_segment
from headrace.pipeline.engine.source_lane import MAX_SEGMENTS
from headrace.testing.pipelines import SyntheticSource, rows_of
from headrace.testing.sessions import SessionSource, has_even_sum

Segment = tuple[list[list[int]], dict[str, int], list[Any]]
"""Row ids of its batches, what became of its rows, and the rejected ones."""


def shaped(sources: Any, seed: int) -> Pipeline:
    """Stages of random shape; the same for the same seed."""
    rng = random.Random(seed)
    pipe = from_sources(sources)
    if rng.random() < 0.5:
        pipe = pipe.filter(keep_most)
    for _ in range(rng.randint(0, 2)):
        pipe = pipe.shuffle(num_rows=rng.randint(1, 60), seed=rng.randint(0, 3))
    return pipe.map(jitter).batch(rng.randint(1, 40), drop_last=rng.random() < 0.3).prefetch(rng.randint(0, 6))


def keep_most(rows: pa.RecordBatch) -> list[bool]:
    return [value % 5 != 0 for value in rows["value"].to_pylist()]


def jitter(rows: pa.RecordBatch, rng: Any) -> pa.RecordBatch:
    """Random numbers of the element, which must be those of the segment alone; in row ids, so that checks see them."""
    place = rows.schema.get_field_index("__row_id")
    ids = [int(number) for number in rows["__row_id"].to_numpy() * 1000 + rng.integers(1000, size=rows.num_rows)]
    return rows.set_column(place, "__row_id", pa.array(ids, pa.int64()))


def sources_of(seed: int, num_segments: int) -> list[SyntheticSource]:
    """Some have no split, or no good row."""
    rng = random.Random(seed)
    found = [SyntheticSource.random(seed + number, num_splits=rng.randint(0, 4)) for number in range(num_segments)]
    if rng.random() < 0.4:
        found[rng.randrange(num_segments)] = SyntheticSource([[(0, 2, 1)], [], [(0, 0, 3)]])
    return found


def read_segment(batches: BatchIterator) -> Segment:
    seen = []
    while (batch := batches.next_in_segment()) is not None:
        seen.append(rows_of(batch))
    stats = batches.take_row_stats()
    rejects = [row for batch in stats.rejects for row in batch.to_pylist()]
    return seen, stats.to_dict(), rejects


def read_all(pipe: Pipeline, **options: Any) -> list[Segment]:
    with pipe.open(**options) as batches:
        found = []
        for number in range(batches.num_segments):
            found.append(read_segment(batches))
            assert batches.segment == number
        assert batches.next_in_segment() is None
        return found


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 4))
def test_each_segment_gives_what_its_source_gives_alone(seed: int, num_segments: int, workers: int) -> None:
    sources = sources_of(seed, num_segments)
    alone = [read_all(shaped([source], seed), executor="inline")[0] for source in sources]
    for options in ({"executor": "inline"}, {"workers": workers}, {"workers": workers, "memory_bytes": 20_000}):
        assert read_all(shaped(sources, seed), **options) == alone


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 3), st.integers(1, 4))
def test_ranks_share_each_segment_as_if_it_was_alone(seed: int, num_ranks: int, workers: int) -> None:
    sources = sources_of(seed, 3)
    for rank in range(num_ranks):
        ranks: dict[str, Any] = {"rank": rank, "num_ranks": num_ranks}
        alone = [read_all(shaped([source], seed), executor="inline", **ranks)[0] for source in sources]
        assert read_all(shaped(sources, seed), workers=workers, **ranks) == alone


@pytest.mark.parametrize("by", ["row", "session"])
@pytest.mark.parametrize("executor", ["inline", "thread"])
def test_sessions_and_rows_are_shuffled_within_their_segment(by: Any, executor: Any) -> None:
    sources = [SessionSource(num_splits=2, seed=seed, nested=seed == 1) for seed in range(3)]

    def pipe(sources: Any) -> Pipeline:
        return (
            from_sources(sources).filter(has_even_sum).shuffle(num_rows=70, seed=2, by=by, session="session").batch(16)
        )

    alone = [read_all(pipe([source]), executor="inline")[0] for source in sources]
    assert read_all(pipe(sources), executor=executor) == alone


def test_a_plain_loop_passes_over_the_ends_of_segments() -> None:
    sources = [
        SyntheticSource([[(5, 0, 0)]]),
        SyntheticSource([]),
        SyntheticSource([[(0, 1, 0)]]),
        SyntheticSource([[(7, 0, 0)]]),
    ]
    pipe = from_sources(sources).batch(4)
    for executor in ("inline", "thread"):
        with pipe.open(executor=executor) as batches:  # type: ignore[arg-type]
            assert [batch.num_rows for batch in batches] == [4, 1, 4, 3]
            assert batches.take_row_stats().num_read == 13
            assert next(batches, None) is None


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_a_stop_behind_any_batch_of_any_segment_loses_nothing(seed: int, workers: int) -> None:
    sources, rng = sources_of(seed, 3), random.Random(seed)
    expected = read_all(shaped(sources, seed), executor="inline")
    for segment, (rows, counts, rejects) in enumerate(expected):
        ends = [0, 1, len(rows), len(rows) + 1]  # the last one behind the end that was told
        for stop in sorted({*ends, *rng.sample(range(len(rows) + 2), min(4, len(rows) + 2))}):
            with shaped(sources, seed).open(workers=workers) as batches:
                for _ in range(segment):
                    read_segment(batches)
                seen = [batches.next_in_segment() for _ in range(stop)]
                state, before = batches.state_dict(), batches.take_row_stats()
            if stop:
                left, at = sources, state
                if stop % 2:  # as a job goes on, with the segment in progress as the first
                    left, at = sources[segment:], in_first_segment(state)
            else:
                left, at = sources[segment:], None
            with shaped(left, seed).open(workers=4 - workers, state=at) as batches:
                rest, *others = [read_segment(batches) for _ in sources[segment:]]
                assert batches.next_in_segment() is None
            assert [rows_of(batch) for batch in seen if batch is not None] + rest[0] == rows
            both = {name: count + rest[1][name] for name, count in before.to_dict().items()}
            assert both == counts
            assert [row for batch in before.rejects for row in batch.to_pylist()] + rest[2] == rejects
            assert others == expected[segment + 1 :]


@dataclass
class Opening:
    """Sources that open when they are asked for, and note it."""

    sources: list[Callable[[], Source]]
    opened: list[int] = field(default_factory=list)
    threads: set[threading.Thread] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, segment: int) -> Source:
        self.opened.append(segment)
        self.threads.add(threading.current_thread())
        return self.sources[segment]()


def fixed(*sizes: int) -> list[Callable[[], Source]]:
    return [lambda size=size: SyntheticSource([[(size, 0, 0)]]) for size in sizes]  # type: ignore[misc]


def wait_for(condition: Callable[[], bool]) -> None:
    """Until the workers have done something; the test's timeout ends it."""
    pause = threading.Event()
    while not condition():
        pause.wait(0.001)


def test_peek_sees_batches_behind_the_end_of_a_segment_and_says_whose_they_are() -> None:
    pipe = from_sources([SyntheticSource([[(6, 0, 0)]]), SyntheticSource([]), SyntheticSource([[(8, 0, 0)]])])
    expected = read_all(pipe.batch(4), executor="inline")
    with pipe.batch(4).prefetch(9).open(workers=2) as batches:
        first = next(batches)
        wait_for(lambda: batches.peek(9).is_all)
        state = batches.state_dict()
        ahead = batches.peek(9)
        assert ahead.segments == (0, 2, 2)
        assert batches.peek(2).batches == ahead.batches[:2]
        assert not batches.peek(2).is_all
        assert batches.state_dict() == state
        assert [rows_of(first), rows_of(ahead.batches[0])] == expected[0][0]
        assert batches.next_in_segment() is ahead.batches[0]
        assert batches.next_in_segment() is None
        assert batches.peek(9).batches == ahead.batches[1:]
        assert batches.next_in_segment() is None
        assert [batches.next_in_segment() for _ in range(2)] == list(ahead.batches[1:])
        assert batches.peek(1).is_all


def test_later_sources_are_opened_ahead_by_workers_and_only_a_few() -> None:
    sources = Opening(fixed(*[3] * 40))
    with from_sources(sources).batch(2).prefetch(2).open(workers=2) as batches:
        assert set(sources.opened) <= {0}
        next(batches)
        wait_for(lambda: len(set(sources.opened)) > 1)
        wait_for(lambda: len(batches.peek(4).batches) > 1)
        assert len(set(sources.opened)) <= 2 * MAX_SEGMENTS + 4  # those in the lane, and those read
        assert [batch.num_rows for batch in batches] == [1, *[2, 1] * 39]
    assert set(sources.opened) == set(range(40))
    assert any(thread.name == "headrace-worker" for thread in sources.threads)


def refuse() -> Source:
    raise DataError("day 2: not readable")


@pytest.mark.parametrize("executor", ["inline", "thread"])
def test_a_source_that_cannot_be_opened_fails_when_its_turn_comes(executor: Any) -> None:
    sources = Opening([*fixed(5, 4), refuse, *fixed(3)])
    with from_sources(sources).batch(4).open(executor=executor) as batches:
        assert [len(read_segment(batches)[0]) for _ in range(2)] == [2, 1]
        with pytest.raises(DataError, match="day 2: not readable"):
            batches.next_in_segment()
    assert max(sources.opened) == 2


@pytest.mark.parametrize("executor", ["inline", "thread"])
def test_an_error_of_a_kind_of_its_own_names_the_segment(executor: Any) -> None:
    sources = Opening([*fixed(5), lambda: [][0]])
    with (
        from_sources(sources).batch(4).open(executor=executor) as batches,
        pytest.raises(PipelineError, match=r"stage source: IndexError: .*; while segment 1 opened"),
    ):
        list(batches)


@pytest.mark.parametrize("executor", ["inline", "thread"])
def test_a_failure_in_a_segment_leaves_the_one_before_whole_and_names_its_place(executor: Any) -> None:
    def fail_late(rows: pa.RecordBatch) -> pa.RecordBatch:
        if rows.num_rows == 3:
            raise ValueError("three")
        return rows

    sources = [SyntheticSource([[(5, 0, 0)]]), SyntheticSource([[(4, 0, 0)], [(3, 0, 0)]])]
    with from_sources(sources).map(fail_late).batch(2).prefetch(8).open(executor=executor) as batches:
        assert len(read_segment(batches)[0]) == 3
        with pytest.raises(PipelineError, match=r"three.*file 1, row group 0"):
            read_segment(batches)


@dataclass
class Scale:
    """A plan that multiplies."""

    factor: int

    def apply(self, rows: pa.RecordBatch) -> list[float]:
        return [self.factor * value for value in rows["value"].to_pylist()]


@dataclass
class Scales:
    """Another one for each segment."""

    factors: list[int]

    def plan_of(self, segment: int) -> Scale:
        return Scale(self.factors[segment])


@pytest.mark.parametrize("executor", ["inline", "thread"])
def test_each_segment_may_have_a_plan_of_its_own(executor: Any) -> None:
    sources = [SyntheticSource([[(3, 0, 0)]]) for _ in range(3)]
    with from_sources(sources).batch(2).transform(Scales([1, 10, 100])).open(executor=executor) as batches:
        assert list(batches) == [[0, 1], [2], [0, 10], [20], [0, 100], [200]]


def test_counters_of_all_time_can_begin_anew() -> None:
    sources = [SyntheticSource([[(4, 0, 0)]] * 3), SyntheticSource([[(4, 0, 0)]] * 2)]
    with from_sources(sources).batch(4).open(executor="inline") as batches:
        read_segment(batches)
        assert batches.counters(float("inf")).consumer.num_batches == 3
        batches.restart_counters()
        assert batches.counters(float("inf")).consumer.num_batches == 0
        read_segment(batches)
        assert batches.counters(float("inf")).stages["batch"].num_elements == 2


def test_a_pipeline_without_sources_is_refused() -> None:
    with pytest.raises(ConfigError, match="from_sources: given no sources"):
        from_sources([])


def test_one_source_is_one_segment() -> None:
    source = SyntheticSource([[(5, 0, 1)]])
    assert read_all(from_source(source).batch(2), workers=1) == read_all(from_sources([source]).batch(2), workers=1)
