"""Counters are read over a window, not over the life of a pipeline."""

import json
from types import SimpleNamespace
from typing import cast

import pytest

from headrace.pipeline import from_source
from headrace.pipeline.engine.counters import GroupNow, Recorder, StageTotals, count_waits
from headrace.pipeline.engine.state import Blocked, PipelineState
from headrace.pipeline.transformations.chain import StageUse
from headrace.simulation import PipelineSpec, StageSpec
from headrace.testing.pipelines import SyntheticSource
from headrace.testing.virtual_engine import VirtualEngine


def test_a_window_leaves_out_what_was_before_it() -> None:
    now = 0.0
    recorder = Recorder(["source", "map"], lambda: now)
    groups = {"source": GroupNow("source", 1, 0, 0), "map": GroupNow("map", 2, 1, 3)}
    for second in range(10):
        now = float(second)
        recorder.tick(now)
        recorder.stages["map"].add(StageUse(0.5, 0.75, 10, 8, 100, 0.25), 200)
        recorder.delivered(8, wait_s=0.1, busy_s=0.2)
    window_s, stages, consumer = recorder.read(3.0, groups)
    assert window_s == 3.0
    reading = stages["map"]
    assert (reading.num_elements, reading.num_rows_in, reading.num_rows_out) == (4, 40, 32)
    assert (reading.num_bytes_in, reading.num_bytes_out, reading.cpu_s, reading.wall_s) == (800, 400, 2.0, 3.0)
    assert reading.queued_s == 1.0
    assert (reading.num_workers, reading.num_running, reading.queue_depth) == (2, 1, 3)
    assert (consumer.num_batches, consumer.num_rows) == (4, 32)
    assert reading.visit_ratio == 1.0
    assert recorder.read(100.0, groups)[0] == 9.0


def test_a_pipeline_counts_every_stage_by_itself() -> None:
    source = SyntheticSource([[(10, 2, 1), (6, 0, 0)], [(8, 0, 0)]])
    pipe = from_source(source).map(lambda rows: rows).filter(lambda rows: rows["value"].to_numpy() % 2 == 0).batch(3)
    with pipe.open(workers=2) as batches:
        rows = sum(batch.num_rows for batch in batches)
        counters = batches.counters()
    stages = counters.stages
    assert list(stages) == ["source", "map", "filter", "batch"]
    assert (stages["source"].num_elements, stages["source"].num_rows_in, stages["source"].num_rows_out) == (3, 27, 24)
    assert (stages["map"].num_rows_in, stages["filter"].num_rows_in, stages["filter"].num_rows_out) == (24, 24, rows)
    assert stages["map"].group == stages["filter"].group == "map+filter"
    assert stages["batch"].num_elements == counters.consumer.num_batches == -(-rows // 3)
    assert stages["source"].visit_ratio == 3 / counters.consumer.num_batches
    assert stages["source"].num_bytes_out == 24 * 16 == stages["map"].num_bytes_in
    assert 0 < counters.peak_bytes <= counters.budget_bytes
    assert counters.bytes_in_flight == 0
    json.dumps(counters.to_dict())


def test_the_consumers_own_time_is_told_apart_from_its_waiting() -> None:
    pipe = from_source(SyntheticSource([[(10, 0, 0)]])).map(spin).batch(5)
    with pipe.open(workers=1) as batches:
        for _ in batches:
            spin(None)
        consumer = batches.counters().consumer
        stage = batches.counters().stages["map"]
    assert consumer.num_batches == 2
    assert consumer.busy_s >= 0.01
    assert consumer.wait_s >= 0.01
    assert 0.01 <= stage.cpu_s <= stage.wall_s * 1.5


def test_waiting_is_counted_where_it_happens() -> None:
    spec = PipelineSpec(stages=(StageSpec(name="slow", cpu_s=0.02), StageSpec(name="quick", cpu_s=0.001)))
    engine = VirtualEngine(spec, 8)
    engine.set_workers("quick", 8)
    engine.run(10.0)
    stages = engine.counters(10.0).stages
    assert stages["slow"].wait_input_s < 0.01
    assert stages["slow"].wait_output_s < 0.01
    assert stages["source"].wait_output_s == pytest.approx(10.0, rel=0.01)
    # Its 8 workers are idle all the time, but for a millisecond of one in every 20.
    assert stages["quick"].wait_input_s == pytest.approx(80.0 - 10.0 / 20, rel=0.01)


def test_a_slow_consumer_holds_back_every_stage() -> None:
    stage = StageSpec(name="work", cpu_s=0.001)
    engine = VirtualEngine(PipelineSpec(stages=(stage,), consumer_s=0.1), 8)
    engine.set_workers("work", 4)
    engine.run(10.0)
    stages = engine.counters(10.0).stages
    assert stages["work"].wait_output_s == pytest.approx(40.0, rel=0.01)
    assert stages["work"].wait_input_s == pytest.approx(0.0, abs=0.05)
    assert stages["work"].wait_memory_s == 0.0


def test_threads_and_memory_that_are_short_are_counted_in_seconds_not_for_each_worker() -> None:
    stage, lanes = StageTotals(), [SimpleNamespace(num_running=1), SimpleNamespace(num_running=1)]
    for reason, waits in (
        (Blocked.THREADS, {"wait_worker_s": 2.0}),
        (Blocked.MEMORY, {"wait_worker_s": 2.0, "wait_memory_s": 2.0, "wait_output_s": 6.0}),
    ):
        state = SimpleNamespace(lanes=lanes[:1], why_idle=lambda index, reason=reason: reason, limit=lambda index: 4)
        count_waits({"map": stage}, cast(PipelineState, state), [("map",)], 2.0)
        assert stage == StageTotals(**waits)


def test_a_running_pipeline_counts_its_waits() -> None:
    pipe = (
        from_source(SyntheticSource([[(5, 0, 0)] * 10] * 4)).map(spin, name="slow").map(lambda rows: rows, name="quick")
    )
    with pipe.open(workers={"slow": 1, "quick": 8}) as batches:
        for _ in batches:
            pass
        assert batches.counters(60).stages["quick"].wait_input_s > 0.0


def spin(rows: object) -> object:
    """Use 20 ms of CPU."""
    import time

    end = time.thread_time() + 0.02
    while time.thread_time() < end:
        pass
    return rows
