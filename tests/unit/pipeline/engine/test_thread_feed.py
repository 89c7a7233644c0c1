"""The thread engine gives what the reference gives: with any workers, through resizes, stops and small budgets."""

import gc
import random
import threading
import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import ConfigError, PipelineError
from headrace.logs.source import ROW_ID, SourceBatch
from headrace.pipeline import Pipeline, from_source
from headrace.testing.pipelines import SyntheticSource, assert_resumes_everywhere, batches_of, rows_of


def busy(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Takes a time that differs from element to element and releases the GIL in between."""
    value = np.asarray(rows["value"])
    for _ in range(int(value[0]) % 7):
        np.sort(np.repeat(value, 50))
    return rows


def jitter(rows: pa.RecordBatch, rng: np.random.Generator) -> pa.RecordBatch:
    return rows.set_column(0, "value", pa.array(np.asarray(rows["value"]) + rng.random(rows.num_rows)))


def add_again(rows: pa.RecordBatch, rng: np.random.Generator) -> pa.RecordBatch:
    return jitter(rows, rng)


def keep_most(rows: pa.RecordBatch) -> np.ndarray:
    return np.asarray(rows["value"]).astype(np.int64) % 5 != 0


def random_pipe(seed: int, *, num_splits: int = 6) -> Pipeline:
    """A pipeline of random shape over a source of random shape."""
    rng = random.Random(seed)
    pipe = from_source(SyntheticSource.random(seed, num_splits=num_splits))
    for _ in range(rng.randint(0, 4)):
        kind = rng.choice(["map", "filter", "shuffle", "batch", "jitter"])
        if kind == "map":
            pipe = pipe.map(busy)
        elif kind == "jitter":
            pipe = pipe.map(jitter)
        elif kind == "filter":
            pipe = pipe.filter(keep_most)
        elif kind == "shuffle":
            pipe = pipe.shuffle(num_rows=rng.randint(1, 60), seed=rng.randint(0, 3))
        else:
            pipe = pipe.batch(rng.randint(1, 30))
    return pipe.batch(rng.randint(1, 40), drop_last=rng.random() < 0.3).prefetch(rng.randint(0, 4))


def values_of(pipe: Pipeline, **options: object) -> list[list[float]]:
    with pipe.open(**options) as batches:
        return [batch["value"].to_pylist() for batch in batches]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8))
def test_batches_do_not_depend_on_the_number_of_workers(seed: int, workers: int) -> None:
    pipe = random_pipe(seed)
    assert values_of(pipe, workers=workers) == values_of(pipe, executor="inline")


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_batches_do_not_depend_on_resizes_in_mid_stream(seed: int) -> None:
    pipe = random_pipe(seed)
    rng = random.Random(seed)
    expected = batches_of(pipe, executor="inline")
    with pipe.open(workers={"source": 2}) as batches:
        seen = []
        for batch in batches:
            seen.append(rows_of(batch))
            tunable = rng.choice([each for each in batches.tunables.values() if each.unit != "bytes"])
            tunable.set(rng.choice([tunable.min, min(tunable.max, 6), rng.randint(max(1, tunable.min), 8)]))
    assert seen == expected


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6))
def test_looking_ahead_changes_nothing_and_shows_the_batches_that_come(seed: int) -> None:
    pipe = random_pipe(seed)
    if seed % 3 == 0:
        pipe = from_source(SyntheticSource.random(seed))  # no stages: batches are those of the source
    expected = batches_of(pipe, executor="inline")
    for executor in ("inline", "thread"):
        with pipe.open(workers=2, executor=executor) as batches:
            seen: list[list[int]] = []
            ahead: list[pa.RecordBatch] = []
            while True:
                state, stats = batches.state_dict(), batches.take_row_stats()
                assert stats.num_used == (len(seen[-1]) if seen else 0)
                peek = batches.peek(3)
                assert all(one is other for one, other in zip(ahead, peek.batches, strict=False))
                assert len(peek.batches) >= len(ahead)
                assert batches.state_dict() == state
                if peek.is_all:
                    assert [rows_of(batch) for batch in peek.batches] == expected[len(seen) :]
                batch = next(batches, None)
                if batch is None:
                    break
                assert not peek.batches or batch is peek.batches[0]
                seen.append(rows_of(batch))
                ahead = list(peek.batches[1:])
            assert seen == expected
            assert batches.peek(1) == ((), (), True)


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_a_stop_behind_any_batch_loses_nothing(seed: int, workers: int) -> None:
    pipe = random_pipe(seed, num_splits=2)
    assert_resumes_everywhere(pipe, first={"workers": workers}, then={"workers": 5 - workers})
    assert_resumes_everywhere(pipe, first={"executor": "inline"}, then={"workers": workers})


@pytest.mark.parametrize("size", [2, 3, None])
def test_source_batches_without_good_rows_are_accounted_once_wherever_the_stop_is(size: int | None) -> None:
    source = SyntheticSource([[(0, 3, 0)], [], [(5, 0, 1), (0, 2, 2)], [(4, 1, 0)], [(0, 4, 4)], []])
    pipe = from_source(source).map(busy)
    pipe = pipe.batch(size) if size else pipe
    assert_resumes_everywhere(pipe, first={"workers": 3}, then={"workers": 2})
    with pipe.open(workers=2) as batches:
        for _ in batches:
            pass
        stats = batches.take_row_stats()
    assert stats.num_read == source.num_rows
    assert stats.num_quarantined == source.num_quarantined == 10
    assert stats.num_dropped == 7
    assert stats.num_read == stats.num_used + stats.num_dropped + stats.num_quarantined


def test_the_account_balances_behind_every_batch() -> None:
    pipe = from_source(SyntheticSource.random(3)).filter(keep_most).shuffle(num_rows=50).batch(7)
    with pipe.open(workers=3) as batches:
        for batch in batches:
            stats = batches.take_row_stats()
            lost = stats.num_filtered + stats.num_dropped + stats.num_quarantined
            assert stats.num_used == batch.num_rows
            assert stats.num_read == batch.num_rows + lost


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_ranks_read_everything_once_and_may_be_another_number_after_a_stop(stop: int) -> None:
    pipe = from_source(SyntheticSource.random(5, num_splits=9)).map(busy).shuffle(num_rows=30, seed=2).batch(4)
    whole = [row for batch in batches_of(pipe, executor="inline") for row in batch]
    steps, states = [], []
    for rank in range(3):
        with pipe.open(workers=2, rank=rank, num_ranks=3) as batches:
            steps.append([rows_of(next(batches)) for _ in range(stop)])
            states.append(batches.state_dict())
    assert states[0] == states[1] == states[2]
    used = [row for step in zip(*steps, strict=True) for part in step for row in part]
    rest = [batches_of(pipe, workers=2, rank=rank, num_ranks=2, state=states[0]) for rank in range(2)]
    assert len(rest[0]) == len(rest[1])
    used += [row for step in zip(*rest, strict=True) for part in step for row in part]
    assert used == whole[: len(used)]
    assert len(whole) - len(used) <= 1  # fewer rows than ranks are left over


def test_epochs_and_seeds_change_the_order_and_nothing_else() -> None:
    pipe = from_source(SyntheticSource([[(200, 0, 0)]])).map(jitter)
    orders = [
        tuple(map(tuple, batches_of(pipe.shuffle(num_rows=100, seed=seed).batch(50), workers=2, epoch=epoch)))
        for seed in (1, 2)
        for epoch in (0, 1)
    ]
    assert len(set(orders)) == 4
    assert len({tuple(sorted(row for batch in order for row in batch)) for order in orders}) == 1
    first, second = values_of(pipe, workers=2, epoch=0), values_of(pipe, workers=2, epoch=1)
    assert first != second


def test_two_stages_draw_different_random_numbers() -> None:
    source = SyntheticSource([[(50, 0, 0)]])
    once = np.array(values_of(from_source(source).map(jitter), workers=1)[0])
    twice = np.array(values_of(from_source(source).map(jitter).map(add_again), workers=1)[0])
    base = np.arange(50)
    assert not np.allclose(twice - once, once - base)


def test_a_resumed_epoch_is_the_one_that_was_stopped() -> None:
    pipe = from_source(SyntheticSource([[(60, 0, 0)]])).shuffle(num_rows=30).batch(10)
    expected = batches_of(pipe, executor="inline", epoch=4)
    with pipe.open(workers=2, epoch=4) as batches:
        next(batches)
        state = batches.state_dict()
    with pipe.open(workers=1) as batches:
        batches.load_state_dict(state)
        assert batches.epoch == 4
        assert [rows_of(batch) for batch in batches] == expected[1:]


class BigRows:
    """A source whose batches differ in size, and a function that makes them larger."""

    def __init__(self, num_splits: int) -> None:
        self.num_splits = num_splits

    def __len__(self) -> int:
        return self.num_splits

    def read(self, split: int) -> Iterator[SourceBatch]:
        for part in range(3):
            num_rows = 400 + 200 * ((split + part) % 4)
            columns = {"value": np.full(num_rows, split, np.float64), ROW_ID: np.arange(num_rows) + split * 10_000}
            yield SourceBatch(pa.record_batch(columns), num_rows)

    def describe(self, split: int) -> str:
        return f"split {split}"


def inflate(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Twelve times the bytes."""
    return pa.record_batch(
        {**{name: rows[name] for name in rows.schema.names}, "wide": pa.array([b"w" * 176] * rows.num_rows)}
    )


@pytest.mark.parametrize("cut", [None, 500, 5000])
def test_bytes_in_flight_stay_within_the_budget_while_functions_allocate(cut: int | None) -> None:
    pipe = from_source(BigRows(30)).map(inflate).prefetch(50)
    pipe = pipe if cut is None else pipe.shuffle(num_rows=cut).batch(300)
    budget = 6_000_000
    with pipe.open(workers=4, memory_bytes=budget) as batches:
        for _ in batches:
            time.thread_time()
        counters = batches.counters()
        decisions = batches.decisions
    assert not decisions
    assert counters.peak_bytes <= budget
    assert counters.peak_bytes > budget / 20
    assert counters.bytes_in_flight == 0


def test_an_element_larger_than_the_budget_goes_on_alone_and_is_reported() -> None:
    pipe = from_source(BigRows(6)).map(inflate).shuffle(num_rows=4000).batch(300)
    with pipe.open(workers=4, memory_bytes=100_000) as batches:
        seen = [rows_of(batch) for batch in batches]
        reasons = [decision.reason for decision in batches.decisions]
    assert seen == batches_of(pipe, executor="inline")
    assert any("such elements run alone, above the budget" in reason for reason in reasons)
    assert len(reasons) == len({reason.split()[1] for reason in reasons})


def fails_on_fifty(rows: pa.RecordBatch) -> pa.RecordBatch:
    if 50.0 in rows["value"].to_pylist():
        raise ValueError("fifty is bad")
    return rows


def test_a_failure_comes_behind_the_batches_before_it_and_names_stage_file_and_row() -> None:
    pipe = from_source(SyntheticSource([[(20, 0, 0)]] * 5)).map(fails_on_fifty).batch(10)
    for options in ({"workers": 3}, {"executor": "inline"}):
        with pipe.open(**options) as batches:
            assert [len(next(batches)) for _ in range(4)] == [10] * 4
            with pytest.raises(PipelineError) as caught:
                next(batches)
            state = batches.state_dict()
        text = str(caught.value)
        assert text.startswith("stage map (fails_on_fifty): ValueError: fifty is bad; at row id 137438953482")
        assert "in file 2, row group 0; raised at " in text
        assert "\n" not in text
        assert any("fails_on_fifty" in note for note in caught.value.__notes__)
        assert state["position"] == [{"item": 1, "piece": 1}, {"rows": 0, "index": 4}]


def test_bad_rows_of_a_function_are_quarantined_with_their_place_once_over_stops() -> None:
    source = SyntheticSource([[(20, 1, 0)]] * 5)
    pipe = from_source(source).map(fails_on_fifty, bad_rows="quarantine").batch(10)
    assert_resumes_everywhere(pipe, first={"workers": 2}, then={"workers": 3})
    with pipe.open(workers=2) as batches:
        delivered = sum(batch.num_rows for batch in batches)
        stats = batches.take_row_stats()
    assert (delivered, stats.num_quarantined, stats.num_filtered) == (99, 6, 0)
    rejects = [row for batch in stats.rejects for row in batch.to_pylist()]
    (ours,) = [row for row in rejects if row["reason"].startswith("stage map")]
    assert (ours["file"], ours["row_group"], ours["row"]) == ("file 2", 0, 8)
    assert '"value": 50.0' in ours["raw"]


class FailingSource(SyntheticSource):
    def read(self, split: int) -> Iterator[SourceBatch]:
        yield from super().read(split)
        if split == 1:
            raise OSError("disk gone")


@pytest.mark.parametrize("options", [{"workers": 3}, {"executor": "inline"}])
def test_a_source_that_fails_is_named(options: dict[str, object]) -> None:
    with from_source(FailingSource([[(5, 0, 0)]] * 3)).open(**options) as batches:
        assert len(next(batches)) == 5
        assert len(next(batches)) == 5
        with pytest.raises(PipelineError, match="stage source: OSError: disk gone; in file 1, row group 0"):
            next(batches)


def test_an_error_in_a_function_names_the_file_and_shows_the_line_of_that_function() -> None:
    def share(value: int) -> float:
        return 1 / (value - value)

    def clean(rows: pa.RecordBatch) -> pa.RecordBatch:
        return rows.append_column("share", pa.array([share(3)]))

    pipe = from_source(SyntheticSource([[(5, 0, 0)]])).map(clean)
    with pipe.open(workers=2) as batches, pytest.raises(PipelineError) as caught:
        next(batches)
    line = share.__code__.co_firstlineno + 1
    text = str(caught.value)
    assert text.endswith(f"; raised at {__file__} line {line}, in share: return 1 / (value - value)")
    assert "\n" not in text


def test_a_stuck_function_is_reported_with_its_place_and_does_not_hold_up_the_end() -> None:
    release = threading.Event()

    def waits(rows: pa.RecordBatch) -> pa.RecordBatch:
        release.wait()
        return rows

    pipe = from_source(SyntheticSource([[(5, 0, 0)]] * 3)).map(waits, timeout_s=0.1)
    try:
        with pipe.open(workers=2) as batches, pytest.raises(PipelineError) as caught:
            next(batches)
    finally:
        release.set()
    text = str(caught.value)
    assert "no result within timeout_s=0.1 for element 0.0 (5 rows of file 0, row group 0)" in text
    assert "test_threads.py" in text or "threading.py" in text
    assert any("in waits" in note for note in caught.value.__notes__)


def test_nothing_is_read_before_the_first_batch_is_asked_for() -> None:
    with from_source(FailingSource([[(5, 0, 0)]] * 3)).open(workers=2) as batches:
        batches.state_dict()
        assert not any(thread.name == "headrace-worker" for thread in threading.enumerate())


def workers_alive() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "headrace-worker"]


@pytest.mark.parametrize("ending", ["close", "forget", "exception", "load"])
def test_an_early_end_stops_all_threads(ending: str) -> None:
    batches = from_source(SyntheticSource.random(1, num_splits=50)).map(busy).batch(3).open(workers=4)
    next(batches)
    assert workers_alive()
    if ending == "close":
        batches.close()
        batches.close()
        assert next(batches, None) is None
    elif ending == "forget":
        del batches
        gc.collect()
    elif ending == "load":
        batches.load_state_dict(batches.state_dict())
    else:
        with pytest.raises(KeyError), batches:
            raise KeyError
    assert not workers_alive()


def test_a_mistake_of_the_engine_itself_reaches_the_consumer() -> None:
    batches = from_source(SyntheticSource([[(5, 0, 0)]] * 3)).open(workers=2)

    def broken(*args: object) -> None:
        raise AssertionError("broken invariant")

    batches._feed._record = broken
    with batches, pytest.raises(AssertionError, match="broken invariant"):
        next(batches)


def test_a_batch_of_tensors_is_moved_to_a_device() -> None:
    import torch

    from headrace.tensors import Batch, KeyedJaggedTensor

    class Plan:
        def apply(self, rows: pa.RecordBatch) -> Batch:
            dense = torch.tensor(rows["value"].to_numpy(), dtype=torch.float32)[:, None]
            sparse = KeyedJaggedTensor.from_lists({"a": [[1]] * rows.num_rows})
            return Batch(dense, (sparse,), dense, torch.tensor(rows[ROW_ID].to_numpy()))

    pipe = from_source(SyntheticSource([[(5, 0, 0)]] * 3)).batch(4).transform(Plan())
    assert batches_of(pipe, workers=2) == batches_of(pipe, executor="inline")
    with pipe.to_device("meta").open(workers=2) as batches:
        batch = next(batches)
        assert batches.counters().stages["transform"].num_bytes_out > 0
    assert batch.dense.is_meta
    assert batch.sparse[0].values.is_meta
    assert len(batch) == 4


def test_a_tunable_refuses_what_is_outside_its_limits() -> None:
    with from_source(SyntheticSource([[(5, 0, 0)]])).map(busy).batch(2).open(workers=2, memory_bytes="1GiB") as batches:
        tunables = batches.tunables
        assert list(tunables) == [
            "workers", "source.workers", "map.workers", "batch.workers", "prefetch", "read_ahead", "memory",
        ]  # fmt: skip
        assert (tunables["workers"].value, tunables["map.workers"].value) == (2, 2)
        tunables["map.workers"].set(5)
        assert (tunables["workers"].value, tunables["map.workers"].value) == (2, 5)
        with pytest.raises(ConfigError, match=r"map\.workers: given 0, expected a whole number from 1 to 256"):
            tunables["map.workers"].set(0)
        assert tunables["memory"].unit == "bytes"


def test_no_stage_works_on_more_elements_at_once_than_it_may() -> None:
    crowd = threading.Condition()
    now = {"a": 0, "b": 0}
    most = {"a": 0, "b": 0}
    wanted = {"a": 1, "b": 2}
    begun = {"a": 0, "b": 0}

    def count(name: str):
        def function(rows: pa.RecordBatch) -> pa.RecordBatch:
            with crowd:
                now[name] += 1
                begun[name] += 1
                is_first = begun[name] == 1  # which runs alone, until it is known how large results are
                most[name] = max(most[name], now[name])
                crowd.notify_all()
                crowd.wait_for(lambda: is_first or most[name] >= wanted[name])
                crowd.wait_for(lambda: most[name] > 3, timeout=0.005)  # time for one too many to come in
                now[name] -= 1
            return rows

        return function

    pipe = from_source(SyntheticSource([[(5, 0, 0)]] * 40)).map(count("a"), name="a").map(count("b"), name="b")
    with pipe.open(workers={"a": 1, "b": 3}) as batches:
        for number, _ in enumerate(batches):
            if number == 20:
                assert most["a"] == 1
                wanted["a"] = 2
                batches.tunables["a.workers"].set(3)
                batches.tunables["b.workers"].set(1)
    assert 1 < most["a"] <= 3
    assert 1 < most["b"] <= 3
