"""Kill training anywhere, start it again: every row is trained on once, and the parameters are the same bit for bit."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from saved_runs import newest_snapshot, parameters

from headrace.logs.generate import GenerateConfig, generate_logs

JOB = """\
run: {run}
data: {{path: logs, bad_rows: {{policy: quarantine, max_ratio: 0.5}}}}
pipeline: {{shuffle: {{num_rows: 1500, seed: 3}}, workers: {workers}}}
embeddings:
  default: {{kind: collisionless, num_embeddings: 64, optimizer: {{kind: rowwise_adagrad, lr: 0.05}}}}
model: {{kind: dlrm, embedding_dim: 8, bottom: [16], top: [32]}}
training:
  {{batch_size: 64, threads: 1, row_ledger: true, checkpoint_every_steps: 7, log_every_steps: 5,
    learning_rate_schedule: {{kind: cosine, cycle_rows: 1000, warm_up_rows: 500}}}}
"""

CHILD = """
import os, signal, sys, threading
from numba.core.registry import cpu_target
from headrace.cli import main
from headrace.training.trainer import Trainer

cpu_target.target_context.refresh()  # imports what the first kernel of each fork would

asked = Trainer._should_stop

def step(self):
    sys.audit("step")
    return asked(self)

Trainer._should_stop = step

def signal_at(wanted, number, sent):
    left = number

    def seen(event, arguments):
        nonlocal left
        if event == wanted:
            left -= 1
            if left == 0:
                strike = lambda: os.kill(os.getpid(), sent)
                # A step goes on beside the thread that ends it; files are left just before they change.
                threading.Thread(target=strike).start() if event == "step" else strike()

    sys.addaudithook(seen)

for line in sys.stdin:
    job, log, event, number, sent = line.split()
    if (child := os.fork()) == 0:
        for stream in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal_at(event, int(number), int(sent))
        sys.argv = ["headrace", "train", job]
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
        print("parts of torch's compiler:", *sorted({"sympy", "torch._dynamo"} & sys.modules.keys()), flush=True)
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Runs `headrace train` in forks of itself, and sends one a signal at so many-th event: a step, an opened or a renamed
file. So the moment is a place in the work, whatever the speed of the machine."""


class Trainings:
    """Starts training in forks of one process that has imported everything."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, run: str, *, workers: int = 2, event: str = "never", number: int = 1, sent: int = 0) -> int:
        """Train until the end, or until an event has happened so many times, which sends a signal; the exit status."""
        (self.folder / f"{run}.yaml").write_text(JOB.format(run=run, workers=workers))
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(self.folder / f"{run}.yaml", self.log(run), event, number, int(sent), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def log(self, run: str) -> Path:
        return self.folder / f"{run}.log"

    def close(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        self.process.wait()


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainings]:
    """Logs of two windows with some bad rows, and an undisturbed run over them in `once`."""
    folder = tmp_path_factory.mktemp("exactly-once")
    generate_logs(GenerateConfig(rows=12_000, windows=2, users=300, items=200, seed=5), folder / "logs")
    plant_bad_labels(folder / "logs")
    with closing(Trainings(folder)) as trainings:
        assert trainings.run("once") == 0, trainings.log("once").read_text()
        yield trainings


def plant_bad_labels(logs: Path) -> None:
    for path in logs.rglob("*.parquet"):
        table = pq.read_table(path)
        label = table.column("click").to_numpy().copy()
        label[::997] = 7
        place = table.schema.get_field_index("click")
        pq.write_table(table.set_column(place, "click", pa.array(label)), path, row_group_size=2000)


def trained_rows(run: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted((run / "ledger").glob("*.parquet")))


def quarantined(run: Path) -> list[tuple[str, int]]:
    tables = [pq.read_table(path) for path in sorted((run / "quarantine").glob("*.parquet"))]
    return sorted((row["file"], row["row"]) for table in tables for row in table.to_pylist())


def test_training_does_not_load_the_compiler_of_torch(trainings: Trainings) -> None:
    """Which torch imports where it can be done without, and which takes every process over a second at its start."""
    assert trainings.log("once").read_text().splitlines()[-1] == "parts of torch's compiler:"


def test_kills_at_any_step_or_change_of_a_file_change_nothing(trainings: Trainings) -> None:
    chance = random.Random(os.environ.get("HEADRACE_TEST_SEED", "11"))
    kills = [("step", 8, 30), ("open", 5, 60), ("step", 8, 30), ("os.rename", 2, 8), ("step", 1, 30)]
    folder = trainings.folder
    for event, least, most in kills:
        number = chance.randint(least, most)
        workers = chance.randint(1, 4)
        ended = trainings.run("killed", workers=workers, event=event, number=number, sent=signal.SIGKILL)
        assert ended == -signal.SIGKILL, trainings.log("killed").read_text()
    assert trainings.run("killed") == 0, trainings.log("killed").read_text()

    expected, found = (parameters(newest_snapshot(run)) for run in (folder / "once", folder / "killed"))
    assert expected.keys() == found.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    assert trained_rows(folder / "killed").equals(trained_rows(folder / "once"))
    ids = trained_rows(folder / "killed").column("row_id").to_numpy()
    assert len(np.unique(ids)) == len(ids) == 12_000 - len(quarantined(folder / "killed"))
    assert quarantined(folder / "killed") == quarantined(folder / "once") != []


def test_a_second_run_finds_nothing_new_and_changes_nothing(trainings: Trainings) -> None:
    checkpoints = trainings.folder / "once" / "checkpoints"
    before = {path: path.stat().st_mtime_ns for path in checkpoints.rglob("*")}
    assert trainings.run("once", workers=1) == 0
    assert "nothing new" in trainings.log("once").read_text()
    assert {path: path.stat().st_mtime_ns for path in checkpoints.rglob("*")} == before


def test_an_interrupt_ends_with_a_checkpoint_and_the_rest_follows(trainings: Trainings) -> None:
    status = trainings.run("interrupted", event="os.rename", number=2, sent=signal.SIGINT)
    assert status == 130, trainings.log("interrupted").read_text()
    assert trainings.run("interrupted") == 0
    runs = trainings.folder / "once", trainings.folder / "interrupted"
    expected, found = (parameters(newest_snapshot(run)) for run in runs)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
