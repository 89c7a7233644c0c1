"""Explanations of pipelines whose limit is known."""

from dataclasses import replace
from typing import Any

import pytest

from headrace.errors import ConfigError
from headrace.pipeline.engine.explanation import Explanation
from headrace.simulation import LATENCY_SPLIT, Machine, PipelineSpec, published_pipeline
from headrace.tuning import SimulatedJob
from headrace.tuning.explaining import explain
from headrace.tuning.space import workers_of


def explained(spec: PipelineSpec, workers: dict[str, int], *, cpus: int = 32, memory: float = 1e12) -> Explanation:
    job = SimulatedJob(spec, Machine.fixed(cpus, memory_bytes=memory))
    job.apply({workers_of(name): number for name, number in workers.items()})
    job.run(10)
    job.observe()
    windows = []
    for _ in range(3):
        job.run(5)
        windows.append(job.observe())
    return explain(windows, job.space)


def with_options(**options: dict[str, Any]) -> PipelineSpec:
    return published_pipeline(1.0, **options)


PLENTY = dict.fromkeys(LATENCY_SPLIT, 32)


def test_too_few_workers_are_named_with_their_gain() -> None:
    found = explained(with_options(), {**PLENTY, "map": 4})
    assert (found.limit, found.stage) == ("workers", "map")
    assert found.worker_gain == pytest.approx(1 / 4, rel=0.05)
    assert "one more worker at map +25" in str(found)


def test_busy_cpus_are_named_and_workers_promise_nothing() -> None:
    found = explained(with_options(), PLENTY)
    assert found.limit == "CPUs"
    assert found.worker_gain == pytest.approx(0, abs=0.01)
    assert found.cpu_gain == pytest.approx(1 / 32, abs=0.015)


def test_a_stage_that_waits_for_storage_is_named() -> None:
    found = explained(with_options(load={"io_s": 5.0}), {**PLENTY, "load": 8})
    assert (found.limit, found.stage) == ("storage", "load")
    assert found.worker_gain == pytest.approx(1 / 8, rel=0.05)


def test_a_trainer_that_is_the_limit_is_told_its_rate() -> None:
    found = explained(replace(with_options(), consumer_s=0.1), PLENTY)
    assert found.limit == "consumer"
    assert found.consumer_per_s == pytest.approx(10, rel=0.02)
    assert (found.worker_gain, found.cpu_gain) == (0.0, 0.0)


def test_a_machine_that_is_busy_with_other_work_is_not_mistaken_for_slow_storage() -> None:
    job = SimulatedJob(with_options(load={"io_s": 5.0}), Machine.fixed(32))
    job.run(30)
    seen = job.observe()
    assert explain([seen], job.space).limit == "storage"
    found = explain([replace(seen, machine_busy_ratio=0.98)], job.space)
    assert found.limit == "CPUs"
    assert "the machine is 98% busy, including other work" in found.reason
    waits = explain([replace(seen, machine_busy_ratio=0.98, queued_s=0.1)], job.space)
    assert waits.limit == "storage"  # its threads hardly waited for a CPU


def test_full_memory_is_named() -> None:
    bytes_out = {name: {"output_bytes": 1e6} for name in LATENCY_SPLIT}
    spec = replace(with_options(**bytes_out), base_bytes=900e6)
    found = explained(spec, dict.fromkeys(LATENCY_SPLIT, 4), memory=1e9)
    assert found.limit == "memory"


def test_a_stage_that_is_at_its_end_does_not_keep_the_others_from_being_explained() -> None:
    job = SimulatedJob(with_options(), Machine.fixed(32))
    job.apply({workers_of(name): number for name, number in {**PLENTY, "map": 4}.items()})
    job.run(20)
    seen = job.observe()
    ended = replace(seen.stages[0], services=0, busy_s=0.0, wall_s=0.0)
    found = explain([replace(seen, stages=(ended, *seen.stages[1:]))], job.space)
    assert (found.limit, found.stage) == ("workers", "map")
    assert found.stages[0].cpu_s < 1e-6
    assert str(found).splitlines()[-len(LATENCY_SPLIT)].split()[-3:] == ["0", "0", "any"]


def test_a_window_without_deliveries_is_seen_together_with_those_before_it() -> None:
    job = SimulatedJob(with_options(), Machine.fixed(32))
    job.run(20)
    seen = job.observe()
    empty = replace(seen, delivered=0, stages=tuple(replace(s, services=0, busy_s=0, wall_s=0) for s in seen.stages))
    assert explain([seen, empty], job.space).rate_per_s == pytest.approx(seen.rate_per_s / 2)


def test_threads_that_share_the_interpreter_are_told_apart_from_slow_storage() -> None:
    job = SimulatedJob(with_options(map={"io_s": 5.0}), Machine.fixed(32))
    job.apply({workers_of("map"): 4})
    job.run(30)
    seen = job.observe()
    assert explain([seen], job.space).limit == "waiting"
    found = explain([replace(seen, gil_wait_s=0.02)], job.space)
    assert (found.limit, found.worker_gain) == ("GIL", 0.0)
    assert "a thread waits 20 ms" in found.reason
    assert 'executor="process"' in found.help


def test_the_stage_that_holds_the_interpreter_is_named_not_one_that_waits_for_it() -> None:
    job = SimulatedJob(with_options(load={"io_s": 50.0}), Machine.fixed(32))
    job.apply({workers_of("map"): 4, workers_of("load"): 1})
    job.run(60)
    seen = replace(job.observe(), gil_wait_s=0.02)
    assert explain([replace(seen, gil_wait_s=0.0)], job.space).stage == "load"  # as slow as it looks
    found = explain([seen], job.space)
    assert (found.limit, found.stage) == ("GIL", "map")
    assert found.help.startswith("run map in processes")

    in_processes = [replace(stage, in_processes=stage.name == "map") for stage in seen.stages]
    found = explain([replace(seen, stages=tuple(in_processes))], job.space)
    assert (found.limit, found.stage) == ("GIL", "batch")  # the next one: a stage in processes holds no lock of ours


def test_stages_that_are_idle_while_the_trainer_waits_mean_overhead() -> None:
    job = SimulatedJob(with_options(), Machine.fixed(32))
    job.apply({workers_of("map"): 4})
    job.run(30)
    seen = job.observe()
    quick = [replace(stage, busy_s=stage.busy_s / 5000, wall_s=stage.wall_s / 2000) for stage in seen.stages]
    found = explain([replace(seen, stages=tuple(quick))], job.space)
    assert (found.limit, found.worker_gain, found.help) == ("overhead", 0.0, "larger batches")


def test_a_budget_for_elements_in_flight_that_is_too_small_is_named_with_its_stage() -> None:
    job = SimulatedJob(with_options(), Machine.fixed(32))
    job.run(20)
    seen = replace(job.observe(), budget_bytes=64 << 20, in_flight_bytes=60 << 20)
    held = [replace(stage, wait_memory_s=(stage.name == "load") * 0.8 * seen.window_s) for stage in seen.stages]
    found = explain([replace(seen, stages=tuple(held))], job.space)
    assert (found.limit, found.stage) == ("memory", "load")
    assert "load waits 80% of the time for room in the memory budget of 64 MiB" in found.reason
    assert "larger memory_bytes" in found.help


def test_an_explanation_is_a_few_lines_and_a_line_for_each_stage() -> None:
    found = explained(with_options(), {**PLENTY, "map": 4})
    lines = str(replace(found, tuner="3 s ago map.workers 2 -> 4: because")).splitlines()
    assert [line.split(":")[0] for line in lines[:6]] == ["limit", "why", "rate", "gain", "help", "tuner"]
    assert lines[7].split()[0] == "stage"
    assert len(lines) == 8 + len(LATENCY_SPLIT)


def test_a_job_that_does_not_run_cannot_be_explained() -> None:
    job = SimulatedJob(with_options(), Machine.fixed(4))
    with pytest.raises(ConfigError, match="nothing has been delivered yet"):
        explain([job.observe()], job.space)
