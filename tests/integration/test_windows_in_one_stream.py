"""The windows of a run follow each other in one stream, and give what runs of one window each give, bit for bit."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from saved_runs import newest_snapshot, parameters

from headrace.errors import HeadraceError
from headrace.logs.generate import GenerateConfig, generate_logs
from headrace.pipeline import BatchIterator
from headrace.training import CheckpointFolder, JobConfig, Trainer, TrainResult
from headrace.training.feed import open_batches
from headrace.training.trainer import Trainer as TrainerOfModule

NUM_WINDOWS = 5
ONLY_BAD = 2
"""A window of which no row is good."""
MEMORY = "256MiB"
TRAINING = {
    "batch_size": 64,
    "threads": 1,
    "row_ledger": True,
    "checkpoint_every_steps": 4,
    "learning_rate_schedule": {"kind": "inverse_square_root", "after_rows": 300, "warm_up_rows": 300},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logs of five windows with some bad rows in each."""
    folder = tmp_path_factory.mktemp("windows")
    generate_logs(GenerateConfig(rows=3000, windows=NUM_WINDOWS, users=100, items=80, seed=5), folder / "logs")
    for number, window in enumerate(windows_of(folder / "logs")):
        for path in sorted(window.glob("*.parquet")):
            table = pq.read_table(path)
            label = table.column("click").to_numpy().copy()
            label[:: 1 if number == ONLY_BAD else 97] = 7
            place = table.schema.get_field_index("click")
            pq.write_table(table.set_column(place, "click", pa.array(label)), path, row_group_size=150)
    return folder


@pytest.fixture(autouse=True)
def growth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that grow several times within a window or two of these logs."""
    for name, value in {"SMALLEST_BATCH": 16, "LARGEST_BATCH": 128, "ROWS_PER_ROW": 8}.items():
        monkeypatch.setattr(f"headrace.training.batch_size.{name}", value)


def windows_of(logs: Path) -> list[Path]:
    return sorted({path.parent for path in logs.rglob("*.parquet")})


def job_of(folder: Path, run: str, logs: str = "logs", **parts: Any) -> JobConfig:
    job: dict[str, Any] = {
        "run": run,
        "data": {"path": logs, "bad_rows": {"policy": "quarantine", "max_ratio": 1.0}},
        "pipeline": {"tuner": "none", "memory": MEMORY, "workers": 2, **parts.pop("pipeline", {})},
        "embeddings": {"default": {"kind": "collisionless", "num_embeddings": 64, "evict_after": 1}},
        "model": {"kind": "dlrm", "embedding_dim": 4, "bottom": [8], "top": [8]},
        "training": TRAINING,
        **parts,
    }
    return JobConfig.from_dict(job, where="job").resolve(folder)


def outcome(run: Path, results: list[TrainResult]) -> dict[str, Any]:
    """Everything a run leaves that does not depend on how long it took."""
    snapshot = newest_snapshot(run)
    found: dict[str, Any] = parameters(snapshot)
    found["checkpoint"] = snapshot.number
    found["state"] = {name: value for name, value in snapshot.state.items() if "seconds" not in name}
    for kind in ("ledger", "quarantine"):
        found[kind] = {path.name: pq.read_table(path).to_pylist() for path in sorted((run / kind).glob("*.parquet"))}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = ("window", "step", "rows", "read", "filtered", "quarantined", "auc", "log_loss", "ne", "checkpoint")
    found["windows"] = [[line[name] for name in names] for line in lines if line["kind"] == "window"]
    found["results"] = [(window.name, window.rows, window.scores) for result in results for window in result.windows]
    return found


def assert_same(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, right[name], err_msg=name)
        else:
            assert repr(value) == repr(right[name]), name  # of scores that are not a number, too


KINDS: dict[str, dict[str, Any]] = {
    "in order": {},
    "shuffled by row": {"pipeline": {"shuffle": {"num_rows": 250, "seed": 3}}},
    "shuffled by session": {"pipeline": {"shuffle": {"num_rows": 250, "seed": 3, "by": "session"}}},
    "growing batches": {"training": {**TRAINING, "batch_size": "auto"}},
    "in this thread": {"pipeline": {"executor": "inline", "shuffle": {"num_rows": 250, "seed": 3}}},
    "in processes": {"pipeline": {"executor": "process", "map": ["headrace.testing.functions:same"], "prefetch": 8}},
    "recs": {"scheduler": {"policy": "recs", "max_groups": 4}},
    "recs_early": {"scheduler": {"policy": "recs_early", "max_groups": 4, "verify": True}},
    "recs in this thread": {"scheduler": {"policy": "recs", "max_groups": 1, "threads": 1}},
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_one_run_over_all_windows_is_a_run_over_each(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    apart = [Trainer(job_of(folder, f"{kind} apart", **KINDS[kind])).run(windows=1) for _ in range(NUM_WINDOWS)]
    expected = outcome(folder / f"{kind} apart", apart)
    assert [len(result.windows) for result in apart] == [1] * NUM_WINDOWS
    assert expected["results"][ONLY_BAD][1].num_used == 0

    opened: list[BatchIterator] = []

    def open_and_note(*given: Any, **options: Any) -> BatchIterator:
        opened.append(open_batches(*given, **options))
        return opened[-1]

    monkeypatch.setattr("headrace.training.stepping.open_batches", open_and_note)
    whole = Trainer(job_of(folder, f"{kind} whole", **KINDS[kind])).run()
    assert len(opened) == 1, "one pipeline for all windows"
    assert opened[0].num_segments == NUM_WINDOWS
    assert_same(outcome(folder / f"{kind} whole", [whole]), expected)


@pytest.mark.parametrize("kind", ["shuffled by row", "growing batches", "recs_early"])
def test_a_job_that_is_stopped_again_and_again_goes_on_exactly(folder: Path, kind: str) -> None:
    """After its first step, then after seven more each time: in any place of a window and of what is read ahead."""
    whole = Trainer(job_of(folder, f"{kind} not stopped", **KINDS[kind])).run()
    expected = outcome(folder / f"{kind} not stopped", [whole])
    run, parts = f"{kind} stopped", {"ledger", "quarantine"}
    results: list[TrainResult] = []
    while not results or results[-1].stopped:
        stops = iter([False] * (7 if results else 1) + [True])
        job = job_of(folder, run, **KINDS[kind])
        results.append(Trainer(job, should_stop=lambda stops=stops: next(stops, True)).run())  # type: ignore[misc]
    assert len(results) > whole.step // 7
    found = outcome(folder / run, results)
    for part in parts:  # files are numbered by checkpoints, of which there are more
        rows = [[row for file in each[part].values() for row in file] for each in (found, expected)]
        assert rows[0] == rows[1]
    left_out = {*parts, "checkpoint", "windows"}
    assert_same(*({name: each[name] for name in each.keys() - left_out} for each in (found, expected)))


@pytest.mark.parametrize("kind", ["in order", "recs", "recs in this thread"])
def test_a_window_that_cannot_be_read_leaves_those_before_it_whole(
    folder: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = tmp_path / "logs"
    for path in (folder / "logs").rglob("*"):
        if path.is_file():
            copy = logs / path.relative_to(folder / "logs")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    damaged = sorted(windows_of(logs)[1].glob("*.parquet"))[0]
    job = job_of(tmp_path, "run", **{**KINDS[kind], "training": {"batch_size": 64, "threads": 1}})
    find = TrainerOfModule._train_windows

    def damage_first(self: Trainer, windows: Any) -> Any:
        data = bytearray(damaged.read_bytes())
        data[4:2000] = bytes(1996)  # pages, not the footer: the window can be opened
        damaged.write_bytes(data)
        return find(self, windows)

    monkeypatch.setattr(TrainerOfModule, "_train_windows", damage_first)
    trainer = Trainer(job)
    with pytest.raises(HeadraceError, match=damaged.name):
        trainer.run()
    assert [window.name for window in trainer.finished] == [windows_of(logs)[0].name]
    checkpoints = CheckpointFolder(tmp_path / "run" / "checkpoints")
    assert len(checkpoints.load(checkpoints.numbers()[-1]).state["cursor"]["windows"]) == 1


@pytest.mark.parametrize("kind", ["in order", "in this thread", "recs", "recs in this thread"])
def test_a_run_that_has_ended_frees_its_memory_without_the_garbage_collector(folder: Path, kind: str) -> None:
    """Many runs in one process would otherwise keep the buffers of each until the collector looks at old objects."""
    trainer = Trainer(job_of(folder, f"{kind} freed", **KINDS[kind]))
    parts = {"trainer": trainer, "plan": trainer.components.plan, "model": trainer.components.model}
    kept = {name: weakref.ref(part) for name, part in parts.items()}
    del parts
    gc.collect()
    gc.disable()
    try:
        trainer.run()
        del trainer
        assert [name for name, part in kept.items() if part() is not None] == []
    finally:
        gc.enable()


def test_batches_of_the_next_window_are_seen_with_their_keys_before_this_one_ends(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int, int]] = []
    take = BatchIterator.next_in_segment

    def look_first(self: BatchIterator) -> Any:
        peek = self.peek(4)
        for batch, segment in zip(peek.batches, peek.segments, strict=True):
            (keys,) = {len(part.keys) for found in batch.unique_keys.values() for part in found}
            seen.append((self.segment, segment, keys))
        return take(self)

    monkeypatch.setattr(BatchIterator, "next_in_segment", look_first)
    pipeline = {"prefetch": 8, "workers": 1}
    Trainer(job_of(folder, "looking", pipeline=pipeline)).run()
    assert any(ahead > now for now, ahead, _ in seen)
    assert all(keys > 0 for _, _, keys in seen)
