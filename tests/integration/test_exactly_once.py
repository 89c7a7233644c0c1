"""Kill training anywhere, start it again: every row is trained on once, and the parameters are the same bit for bit."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.logs.generate import GenerateConfig, generate_logs
from headrace.training import CheckpointFolder

JOB = """\
run: {run}
data: {{path: logs, bad_rows: {{policy: quarantine, max_ratio: 0.5}}}}
pipeline: {{shuffle: {{num_rows: 1500, seed: 3}}, workers: {workers}}}
embeddings:
  default: {{kind: collisionless, num_embeddings: 64, optimizer: {{kind: rowwise_adagrad, lr: 0.05}}}}
model: {{kind: dlrm, embedding_dim: 8, bottom: [16], top: [32]}}
training: {{batch_size: 64, threads: 1, row_ledger: true, checkpoint_every_steps: 7, log_every_steps: 5}}
"""
NUM_KILLS = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logs of two windows with some bad rows, and an undisturbed run over them in `once`."""
    folder = tmp_path_factory.mktemp("exactly-once")
    generate_logs(GenerateConfig(rows=12_000, windows=2, users=300, items=200, seed=5), folder / "logs")
    plant_bad_labels(folder / "logs")
    assert train(folder, "once", workers=2).wait() == 0
    return folder


def plant_bad_labels(logs: Path) -> None:
    for path in logs.rglob("*.parquet"):
        table = pq.read_table(path)
        label = table.column("click").to_numpy().copy()
        label[::997] = 7
        place = table.schema.get_field_index("click")
        pq.write_table(table.set_column(place, "click", pa.array(label)), path, row_group_size=2000)


def train(folder: Path, run: str, workers: int) -> subprocess.Popen[bytes]:
    (folder / f"{run}.yaml").write_text(JOB.format(run=run, workers=workers))
    command = [sys.executable, "-m", "headrace", "train", str(folder / f"{run}.yaml")]
    with (folder / f"{run}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def parameters(run: Path) -> dict[str, npt.NDArray[np.generic]]:
    """Dense parameters, and table columns in the order of (space, id): rows may lie elsewhere after a restart."""
    folder = CheckpointFolder(run / "checkpoints")
    snapshot = folder.load(folder.numbers()[-1])
    found = {f"{group}.{name}": array for group, of in snapshot.arrays.items() for name, array in of.items()}
    for table, columns in snapshot.columns.items():
        order = np.lexsort((columns["ids"], columns["spaces"]))
        for name in ("spaces", "ids", "weights", "slot.accumulator", "frequency", "last_seen"):
            found[f"{table}.{name}"] = np.asarray(columns[name])[order]
    return found


def trained_rows(run: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted((run / "ledger").glob("*.parquet")))


def quarantined(run: Path) -> list[tuple[str, int]]:
    tables = [pq.read_table(path) for path in sorted((run / "quarantine").glob("*.parquet"))]
    return sorted((row["file"], row["row"]) for table in tables for row in table.to_pylist())


def checkpoints_of(folder: Path, run: str) -> list[int]:
    return CheckpointFolder(folder / run / "checkpoints").numbers()


@pytest.mark.slow
def test_five_random_kills_change_nothing(folder: Path) -> None:
    chance = random.Random(os.environ.get("HEADRACE_TEST_SEED", "11"))
    run, kills = "killed", 0
    while True:
        process = train(folder, run, workers=chance.randint(1, 4))
        # Kill once it got further than the last time, at a moment that is not tied to a checkpoint.
        goal = len(checkpoints_of(folder, run)) and checkpoints_of(folder, run)[-1]
        while process.poll() is None and (not checkpoints_of(folder, run) or checkpoints_of(folder, run)[-1] <= goal):
            time.sleep(0.005)
        if kills == NUM_KILLS or process.poll() is not None:
            break
        time.sleep(chance.random() * 0.15)
        process.send_signal(signal.SIGKILL)
        killed = process.wait() == -signal.SIGKILL
        kills += killed
        if not killed:
            break
    assert process.wait() == 0, (folder / f"{run}.log").read_text()
    assert kills == NUM_KILLS, "training was over too early to be killed five times"

    expected, found = parameters(folder / "once"), parameters(folder / run)
    assert expected.keys() == found.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    assert trained_rows(folder / run).equals(trained_rows(folder / "once"))
    ids = trained_rows(folder / run).column("row_id").to_numpy()
    assert len(np.unique(ids)) == len(ids) == 12_000 - len(quarantined(folder / run))
    assert quarantined(folder / run) == quarantined(folder / "once") != []


def test_a_second_run_finds_nothing_new_and_changes_nothing(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (folder / "once" / "checkpoints").rglob("*")}
    assert train(folder, "once", workers=1).wait() == 0
    assert "nothing new" in (folder / "once.log").read_text()
    assert {path: path.stat().st_mtime_ns for path in (folder / "once" / "checkpoints").rglob("*")} == before


def test_an_interrupt_ends_with_a_checkpoint_and_the_rest_follows(folder: Path) -> None:
    process = train(folder, "interrupted", workers=2)
    while not checkpoints_of(folder, "interrupted"):
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130, (folder / "interrupted.log").read_text()
    assert train(folder, "interrupted", workers=2).wait() == 0
    expected, found = parameters(folder / "once"), parameters(folder / "interrupted")
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
