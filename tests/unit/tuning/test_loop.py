"""The tuner's thread: what it writes down, with a job and explanations that are scripted."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

import headrace.tuning.loop as loop
from headrace.pipeline.engine.explanation import Explanation
from headrace.simulation import PipelineSpec, StageSpec
from headrace.testing.virtual_engine import VirtualEngine
from headrace.tuning.loop import Tuner
from headrace.tuning.observation import Observation


class Job(VirtualEngine):
    """Virtual time passes while the tuner looks."""

    def observe(self) -> Observation:
        self.run(1.0)
        return super().observe()


class Log:
    def __init__(self) -> None:
        self.found: list[Any] = []
        self._written = threading.Condition()

    def record(self, who: str, change: object, reason: str, snapshot: Any = None) -> None:
        with self._written:
            self.found += [(snapshot["limit"], snapshot["stage"], snapshot["text"])] if who == "explain" else []
            self._written.notify_all()

    def wait_for(self, limit: str) -> None:
        with self._written:
            self._written.wait_for(lambda: any(limit == found for found, *_ in self.found))


def explained(limit: str, stage: str) -> Explanation:
    return Explanation(limit, stage, 10.0, 20.0, 0.1, 0.1, "because")


def test_what_limits_a_running_job_is_written_down_when_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    script: Iterator[Explanation] = iter(
        [explained("storage", "map")] * 3 + [explained("storage", "read")] * 2 + [explained("consumer", "map")] * 2
    )
    last = explained("workers", "map")
    monkeypatch.setattr(loop, "EXPLAIN_EVERY_S", 0.0)
    monkeypatch.setattr(loop, "explain", lambda *seen, **tuner: next(script, last))
    job, log = Job(PipelineSpec(stages=(StageSpec(name="map", cpu_s=0.1),)), 2), Log()
    with Tuner(job, "auto", decisions=log, window_s=0.001):
        log.wait_for("workers")
    assert [(limit, stage) for limit, stage, _ in log.found] == [
        ("storage", "map"),
        ("storage", "read"),
        ("consumer", "map"),
        ("workers", "map"),
    ]
    assert log.found[0][2].startswith("limit: storage, at stage map")


def test_the_tuner_counts_its_own_cpu_time() -> None:
    job = Job(PipelineSpec(stages=(StageSpec(name="map", cpu_s=0.1),)), 2)
    looked = threading.Event()

    def cpu_s() -> float:
        looked.set()
        return 3.0

    with Tuner(job, "auto", window_s=0.001, clock=cpu_s) as tuner:
        looked.wait()
    assert tuner.failure is None
    assert tuner.cpu_ratio > 0.0
