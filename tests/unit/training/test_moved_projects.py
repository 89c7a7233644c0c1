"""A project may be moved or copied, also while a window is in progress: logs, run and quarantine are found again."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.training import JobConfig, Trainer, TrainResult

JOB = """\
run: run
data:
  path: logs
  bad_rows: {policy: quarantine, path: quarantine, max_ratio: 0.5}
pipeline: {executor: inline, tuner: none}
model: {kind: dlrm, embedding_dim: 4, bottom: [4], top: [4]}
training: {batch_size: 32, threads: 1, precision: fp32}
"""
WINDOWS = {"folder": "{kind: folder}", "time": "{kind: time, every_s: 300, include_incomplete: true}"}


def write_project(folder: Path, window: str) -> None:
    for day in range(2):
        rows = range(day * 300, day * 300 + 300)
        path = folder / f"logs/day={day}/a.parquet"
        path.parent.mkdir(parents=True)
        prices = ["x" if row % 60 == 0 else f"{row / 7}" for row in rows]
        clicks, users = [row % 7 == 0 for row in rows], [row % 50 for row in rows]
        table = pa.table({"click": clicks, "user": users, "price": prices, "time": list(rows)})
        pq.write_table(table, path, row_group_size=100)
    (folder / "logs/schema.yaml").write_text(
        "version: 1\nlabels: [click]\ndense: [price]\nids: [user]\ntimestamp: {name: time, unit: s}\n"
    )
    (folder / "job.yaml").write_text(JOB.replace("  path: logs\n", f"  path: logs\n  window: {window}\n"))


def train(folder: Path, steps: int | None = None) -> tuple[Trainer, TrainResult]:
    left = [10**9 if steps is None else steps]

    def should_stop() -> bool:
        left[0] -= 1
        return left[0] < 0

    trainer = Trainer(JobConfig.from_file(folder / "job.yaml"), should_stop=should_stop)
    return trainer, trainer.run()


def state_of(trainer: Trainer) -> list[Any]:
    weights = {name: value.tolist() for name, value in trainer.components.model.state_dict().items()}
    return [trainer.state.step, str(trainer.state.rows), json.dumps(weights, sort_keys=True, default=str)]


@pytest.mark.parametrize("kind", list(WINDOWS))
@pytest.mark.parametrize("is_copied", [False, True], ids=["moved", "copied"])
def test_a_project_moved_in_the_middle_of_a_window_ends_as_if_it_had_stayed(
    tmp_path: Path, kind: str, is_copied: bool
) -> None:
    write_project(tmp_path / "stays", WINDOWS[kind])
    expected, _ = train(tmp_path / "stays")
    write_project(tmp_path / "before", WINDOWS[kind])
    _, first = train(tmp_path / "before", steps=3)
    assert first.stopped
    if is_copied:
        shutil.copytree(tmp_path / "before", tmp_path / "after")
        for path in (tmp_path / "before/logs").rglob("*.parquet"):
            path.write_bytes(b"not the log any more")
    else:
        (tmp_path / "before").rename(tmp_path / "after")
    trainer, result = train(tmp_path / "after")
    assert not result.stopped
    assert state_of(trainer) == state_of(expected)
    assert (trainer.state.rows.num_read, trainer.state.rows.num_quarantined) == (600, 10)
    assert not (tmp_path / "before/run/checkpoints").exists() or is_copied
