"""Runs over three windows whose features change after the first window, or in it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from headrace.cli.app import app
from headrace.cluster.launcher import LaunchOptions
from headrace.errors import CheckpointError
from headrace.logs.generate import GenerateConfig, generate_logs
from headrace.observe.decisions import read_decisions
from headrace.scoring.scorer import Scorer
from headrace.training import CheckpointFolder, JobConfig, Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

LOGS = GenerateConfig(rows=900, windows=3, users=40, items=30, user_dense=1, item_dense=1, id_lists=1, seed=3)
WITHOUT = {"dense": {"user_x0": []}, "sparse": {"user": [], "item": [], "segment_0": []}}
WITH = {"dense": {"item_x0": [], "user_x0": []}, "sparse": {"user": [], "history": [], "item": []}}


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    generate_logs(LOGS, folder / "logs")
    return folder / "logs"


class Run:
    """A run whose first part has the features `WITHOUT`, and the rest `WITH`."""

    def __init__(self, folder: Path, logs: Path) -> None:
        self.folder, self._logs = folder, logs
        self.said: list[str] = []

    def job(self, features: dict[str, Any]) -> JobConfig:
        return JobConfig.from_dict(
            {
                "run": str(self.folder),
                "data": {"path": str(self._logs)},
                "features": features,
                "pipeline": {"executor": "inline", "tuner": "none"},
                "embeddings": {"default": {"kind": "collisionless", "admission_count": 2, "evict_after": 1}},
                "model": {"kind": "dlrm", "embedding_dim": 4, "bottom": [8], "top": [8]},
                "training": {"batch_size": 50, "threads": 1, "precision": "fp32", "row_ledger": True},
            },
            where="job",
        ).resolve(self.folder)

    def train(
        self,
        features: dict[str, Any] = WITH,
        *,
        flag: bool = False,
        steps: int | None = None,
        windows: int | None = None,
    ) -> None:
        """Train, and stop after some steps."""
        asked = 0

        def should_stop() -> bool:
            nonlocal asked
            asked += 1
            return steps is not None and asked > steps

        trainer = Trainer(
            self.job(features), should_stop=should_stop, on_message=self.said.append, change_features=flag
        )
        trainer.run(windows=windows)

    @property
    def checkpoints(self) -> CheckpointFolder:
        return CheckpointFolder(self.folder / "checkpoints")

    def outcome(self) -> dict[str, npt.NDArray[Any]]:
        """Dense parameters, optimizer, metrics, and table columns in the order of (table, id)."""
        snapshot, refused = self.checkpoints.load_latest()
        assert snapshot is not None
        assert not refused
        found = {f"{group}.{name}": array for group, of in snapshot.arrays.items() for name, array in of.items()}
        for group, columns in snapshot.columns.items():
            order = np.lexsort((columns["ids"], columns["tables"]))
            for name, column in columns.items():
                if name not in ("header", "rows"):
                    of_rows = not name.startswith(("pending", "removed"))
                    found[f"{group}.{name}"] = np.asarray(column[order] if of_rows else column)
        return found

    def rows(self) -> list[int]:
        """Rows trained on, in order."""
        ledger = [pq.read_table(path) for path in sorted((self.folder / "ledger").glob("*.parquet"))]
        return [int(row) for row in pa.concat_tables(ledger).column("row_id").to_pylist()]


@pytest.fixture(scope="module")
def first_window(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run after its first window, without the features that follow."""
    run = Run(tmp_path_factory.mktemp("first") / "run", logs)
    run.train(WITHOUT, windows=1)
    return run


@pytest.fixture(scope="module")
def whole(first_window: Run) -> Run:
    """The same run with other features from its second window on, never stopped."""
    run = copied(first_window, first_window.folder.with_name("whole"))
    run.train(flag=True)
    return run


@pytest.fixture
def run(first_window: Run, tmp_path: Path) -> Run:
    """A copy of the run after its first window."""
    return copied(first_window, tmp_path / "run")


def copied(run: Run, folder: Path) -> Run:
    shutil.copytree(run.folder, folder)
    return Run(folder, run._logs)


def assert_same(one: Run, other: Run) -> None:
    expected, found = one.outcome(), other.outcome()
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    assert one.rows() == other.rows()


def test_a_run_goes_on_with_other_features_and_says_so_also_in_its_records(run: Run) -> None:
    before = run.checkpoints.numbers()[-1]
    run.train(flag=True)
    assert "features: added dense item_x0, sparse history; removed sparse segment_0" in run.said
    assert f"checkpoint {before + 1} has the changed features, checkpoint {before} the earlier ones" in run.said
    assert f"going on from checkpoint {before + 1}, step 6" in run.said
    assert len(run.rows()) == len(set(run.rows())) == 900
    changes = [each for each in read_decisions(run.folder / "decisions.jsonl") if each.change]
    assert [(each.reason, dict(each.change)) for each in changes] == [
        (
            "features: added dense item_x0, sparse history; removed sparse segment_0",
            {
                "dense features": ("user_x0", "item_x0, user_x0"),
                "sparse features": ("user, item, segment_0", "user, history, item"),
            },
        )
    ]
    Scorer(run.job(WITH)).evaluate(run.job(WITH).data.path)
    run.train()  # without the flag: there is nothing new


def test_the_change_is_refused_without_the_flag_and_leaves_the_run_as_it_is(run: Run) -> None:
    files = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    with pytest.raises(
        CheckpointError, match=r"other features than the job \(added dense item_x0, sparse history; rem"
    ):
        run.train()
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == files
    with pytest.raises(CheckpointError, match="--change-features"):
        Scorer(run.job(WITH))
    run.train(WITHOUT)  # it goes on as before


@pytest.mark.parametrize("steps", [0, 1, 4, 8])
def test_a_run_that_is_stopped_after_the_change_resumes_like_any_other(run: Run, whole: Run, steps: int) -> None:
    run.train(flag=True, steps=steps)
    run.train()
    assert_same(whole, run)


def test_features_may_change_within_a_window(run: Run) -> None:
    run.train(WITHOUT, steps=2)
    whole = copied(run, run.folder.with_name("whole"))
    whole.train(flag=True)
    assert len(whole.rows()) == len(set(whole.rows())) == 900
    run.train(flag=True, steps=1)
    run.train()
    assert_same(whole, run)


def test_a_kill_during_the_change_changes_nothing(run: Run, whole: Run, monkeypatch: pytest.MonkeyPatch) -> None:

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    before = run.checkpoints.numbers()
    with monkeypatch.context() as patch:
        patch.setattr("headrace.training.checkpoint.Manifest.write", killed)
        with pytest.raises(KeyboardInterrupt):
            run.train(flag=True)
    assert run.checkpoints.numbers() == before
    with pytest.raises(CheckpointError, match="--change-features"):
        run.train()
    run.train(flag=True)
    assert_same(whole, run)


def test_output_that_no_checkpoint_committed_is_not_committed_by_the_change(run: Run, whole: Run) -> None:
    newest = run.checkpoints.numbers()[-1]
    left = run.folder / "ledger" / f"{newest + 1:08d}.parquet"  # as a kill right before the checkpoint leaves it
    shutil.copy(run.folder / "ledger" / f"{newest:08d}.parquet", left)
    run.train(flag=True)
    assert any(line.startswith("moved output newer than the checkpoint") for line in run.said)
    assert_same(whole, run)


def test_a_damaged_change_falls_back_to_the_earlier_features_and_is_made_again(run: Run, whole: Run) -> None:
    run.train(flag=True, steps=0)
    changed = run.checkpoints.numbers()[-2:]
    for number in changed:  # the change, and the checkpoint of the stop
        (run.folder / "checkpoints" / f"{number:08d}" / "dense.safetensors").write_bytes(b"torn")
    run.said.clear()
    with pytest.raises(CheckpointError, match="other features than the job"):
        run.train()
    assert [line.split(":")[0] for line in run.said] == ["refused a checkpoint, falling back to the previous one"] * 2
    run.train(flag=True)
    assert_same(whole, run)


def test_the_command_takes_the_flag_and_prints_what_it_does(run: Run, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(run.job(WITH).to_yaml())
    done = CliRunner().invoke(app, ["train", str(job), "--change-features"])
    assert done.exit_code == 0, done.output
    assert "features: added dense item_x0, sparse history; removed sparse segment_0" in done.output


def test_launch_passes_the_flag_to_its_trainers(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, given = tmp_path / "job.yaml", []
    job.write_text(run.job(WITH).to_yaml())

    def launch(job: Path, run: Path, options: LaunchOptions, **_: Any) -> int:
        given.append(options.arguments)
        return 0

    monkeypatch.setattr("headrace.cluster.launcher.launch", launch)
    for arguments in (["launch", str(job)], ["launch", str(job), "--change-features", "--windows", "1"]):
        assert CliRunner().invoke(app, arguments).exit_code == 0
    assert given == [(), ("--windows=1", "--change-features")]
