"""Whole jobs under a scheduler: checkpoints, accounts and resumes are those of a plain loop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from saved_runs import newest_snapshot, parameters

from headrace.errors import ConfigError
from headrace.logs.generate import GenerateConfig, generate_logs
from headrace.pipeline import BatchIterator
from headrace.registry import STEP_POLICIES
from headrace.scheduling.state import SchedulerState
from headrace.training import JobConfig, Trainer, TrainResult
from headrace.training.first_job import EMBEDDING_OPTIMIZER, LINEAR_OPTIMIZER

NUM_ROWS = 3000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logs of two windows with some bad rows, and a plain run over them in `plain`."""
    folder = tmp_path_factory.mktemp("scheduled")
    generate_logs(GenerateConfig(rows=NUM_ROWS, windows=2, users=100, items=80, seed=5), folder / "logs")
    for path in (folder / "logs").rglob("*.parquet"):
        table = pq.read_table(path)
        label = table.column("click").to_numpy().copy()
        label[::397] = 7
        place = table.schema.get_field_index("click")
        pq.write_table(table.set_column(place, "click", pa.array(label)), path)
    train(folder, "plain", "auto")
    return folder


def train(folder: Path, run: str, scheduler: Any, stop_at: int | None = None) -> TrainResult:
    job = JobConfig.from_dict(
        {
            "run": run,
            "data": {"path": "logs", "bad_rows": {"policy": "quarantine", "max_ratio": 0.5}},
            "pipeline": {"shuffle": {"num_rows": 700, "seed": 3}, "tuner": "none", "memory": "64MiB"},
            "embeddings": {
                "default": {
                    "kind": "collisionless",
                    "num_embeddings": 64,
                    "admission_count": 2,
                    "optimizer": EMBEDDING_OPTIMIZER,
                },
                "linear_optimizer": LINEAR_OPTIMIZER,
            },
            "model": {"kind": "dcnv2", "embedding_dim": 4, "cross_rank": 2, "deep": [8], "linear": True},
            "training": {
                "batch_size": 64,
                "threads": 1,
                "row_ledger": True,
                "checkpoint_every_steps": 7,
                "log_every_steps": 5,
                "learning_rate_schedule": {"kind": "cosine", "cycle_rows": 1000},
            },
            "scheduler": scheduler,
        },
        where="job",
    ).resolve(folder)
    steps = 0

    def should_stop() -> bool:
        nonlocal steps
        steps += 1
        return stop_at is not None and steps > stop_at

    return Trainer(job, should_stop=should_stop).run()


def state(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = parameters(newest_snapshot(run))
    for kind in ("ledger", "quarantine"):
        tables = [pq.read_table(path) for path in sorted((run / kind).glob("*.parquet"))]
        found[kind] = pa.concat_tables(tables).to_pylist()
    return found


def assert_same_run(run: Path, expected: Path) -> None:
    left, right = state(run), state(expected)
    assert left.keys() == right.keys()
    for name, value in left.items():
        if isinstance(value, list):
            assert value == right[name], name
        else:
            np.testing.assert_array_equal(value, right[name], err_msg=name)


@pytest.mark.parametrize("policy", sorted(STEP_POLICIES))
def test_a_scheduled_job_ends_with_the_same_checkpoint(folder: Path, policy: str) -> None:
    result = train(folder, policy, {"policy": policy, "max_groups": 4})
    assert_same_run(folder / policy, folder / "plain")
    used = sum(window.rows.num_used for window in result.windows)
    assert used + sum(window.rows.num_quarantined for window in result.windows) == NUM_ROWS


@pytest.mark.parametrize("policy", ["recs", "recs_early"])
@pytest.mark.parametrize("stop_at", [3, 20])
def test_a_stopped_scheduled_job_goes_on_exactly(folder: Path, policy: str, stop_at: int) -> None:
    run = f"stopped-{policy}-{stop_at}"
    assert train(folder, run, {"policy": policy, "max_groups": 4}, stop_at=stop_at).stopped
    assert not train(folder, run, "auto").stopped  # under another policy, even
    assert_same_run(folder / run, folder / "plain")


def test_verify_passes_on_a_whole_job(folder: Path) -> None:
    train(folder, "verified", {"policy": "recs_early", "verify": True, "max_groups": 3})
    assert_same_run(folder / "verified", folder / "plain")


def test_pipeline_and_steps_share_the_memory_budget_of_the_job(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budgets: dict[str, int] = {}
    begin, take = SchedulerState.__init__, BatchIterator.next_in_segment

    def watch_state(self: SchedulerState, *arguments: Any, **options: Any) -> None:
        begin(self, *arguments, **options)
        budgets["steps"] = self.bytes.ledger.budget_bytes

    def watch_batches(self: BatchIterator) -> Any:
        budgets["pipeline"] = self.counters(1.0).budget_bytes
        return take(self)

    monkeypatch.setattr(SchedulerState, "__init__", watch_state)
    monkeypatch.setattr(BatchIterator, "next_in_segment", watch_batches)
    train(folder, "budgets", "recs")
    assert budgets == {"steps": 16 << 20, "pipeline": 48 << 20}
    train(folder, "alone", "auto")
    assert budgets["pipeline"] == 64 << 20


def test_the_latest_steps_are_left_as_a_trace(folder: Path) -> None:
    train(folder, "traced", "recs")
    trace = json.loads((folder / "traced" / "schedule.json").read_text())
    assert trace["policy"] == "recs"
    assert {span["kind"] for span in trace["spans"]} == {"read", "features", "pull", "dense", "push", "update"}
    assert all(span["reason"] for span in trace["spans"])
    assert not (folder / "plain" / "schedule.json").exists()


def test_an_unknown_policy_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"scheduler.policy: given 'fast'"):
        train(folder, "unknown", "fast")


def test_explain_writes_the_trace_in_chromes_format_and_says_where_there_is_none(folder: Path) -> None:
    from headrace.cli.explain import explain

    train(folder, "explained", "recs")
    explain(folder / "explained", trace=folder / "trace.json")
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    assert {event["cat"] for event in events if event["ph"] == "X"} >= {"dense", "features", "pull", "push"}
    with pytest.raises(ConfigError, match="has no trace of steps"):
        explain(folder / "plain", trace=folder / "trace.json")


def test_the_report_draws_the_latest_steps(folder: Path) -> None:
    from headrace.observe.report import write_report
    from headrace.observe.run_data import RunData

    train(folder, "reported", "recs")
    assert "The latest 4 steps under recs" in write_report(folder / "reported").read_text()
    assert "features" in RunData.read(folder / "reported").names_below("stages")
    assert "under recs" not in write_report(folder / "plain").read_text()
