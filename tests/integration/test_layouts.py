"""One job on every layout of a log: it trains, scores and exports with the same rows and the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.logs import Schema
from headrace.logs.clustering import ClusterConfig, cluster_log
from headrace.pipeline import read_parquet
from headrace.scoring import ExportedModel, Scorer, export_model
from headrace.training import JobConfig, Trainer

pytest.importorskip("duckdb")

LAYOUTS = ("plain", "clustered", "nested")
SCHEMA = Schema.from_dict(
    {"labels": ["click"], "dense": ["age"], "ids": ["user", "item"], "id_lists": ["history"], "timestamp": "time"},
    where="test",
)


def rows(seed: int) -> pa.Table:
    random = np.random.default_rng(seed)
    user = random.integers(0, 12, 300)
    return pa.table(
        {
            "click": random.integers(0, 2, 300),
            "user": user,
            "item": random.integers(0, 30, 300),
            "age": user * 1.5,
            "history": [[int(number), int(number) + 1] for number in user],
            "time": np.sort(random.integers(0, 10**8, 300)),
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log without row ids and sessions, and its clustered copies, in which sessions are found by gaps."""
    folder = tmp_path_factory.mktemp("layouts")
    for window in ("day=1", "day=2"):
        (folder / "plain" / window).mkdir(parents=True)
        pq.write_table(rows(len(window) + int(window[-1])), folder / "plain" / window / "a.parquet")
    (folder / "plain" / "schema.yaml").write_text(SCHEMA.to_yaml())
    for layout in LAYOUTS[1:]:
        cluster_log(folder / "plain", folder / layout, SCHEMA, ClusterConfig(layout=layout, user="user", gap_s=3600))
    return folder


def job_over(folder: Path, layout: str, *, schema_of: str, run: str, **pipeline: object) -> JobConfig:
    job = {
        "run": str(folder / "runs" / run),
        "data": {"path": str(folder / layout), "schema": str(folder / schema_of / "schema.yaml")},
        "model": {"kind": "dlrm", "embedding_dim": 4, "bottom": [8], "top": [8]},
        "training": {"batch_size": 64, "threads": 1, "row_ledger": True},
        "pipeline": {"executor": "inline", **pipeline},
    }
    return JobConfig.from_dict(job, where="test").resolve(folder)


def predictions(job: JobConfig, logs: Path, out: Path) -> list[dict[str, object]]:
    Scorer(job).predict(str(logs), out)
    found = pq.read_table(out, columns=["row_id", "row", "p_click"]).sort_by("row_id").to_pylist()
    assert len(found) == 600
    return found


@pytest.mark.parametrize("trained_on", LAYOUTS)
def test_a_job_trained_on_one_layout_scores_and_exports_every_other(
    folder: Path, tmp_path: Path, trained_on: str
) -> None:
    by_session = {"shuffle": {"num_rows": 128, "by": "session"}} if trained_on != "plain" else {}
    job = job_over(folder, trained_on, schema_of=trained_on, run=f"of-{trained_on}", **by_session)
    Trainer(job).run()
    first, *others = [predictions(job, folder / layout, tmp_path / "out.parquet") for layout in LAYOUTS]
    assert others == [first, first]
    scores = [Scorer(job).evaluate(str(folder / layout))["click"] for layout in LAYOUTS]
    assert {(score.rows, round(score.log_loss, 9)) for score in scores} == {(600, round(scores[0].log_loss, 9))}

    for checked_on in LAYOUTS[LAYOUTS.index(trained_on) - 1 :][:1]:  # another one
        moved = job_over(folder, checked_on, schema_of=trained_on, run=f"of-{trained_on}", **by_session)
        export_model(moved, tmp_path / checked_on)
        exported = ExportedModel(tmp_path / checked_on)
        pipe = read_parquet(folder / "plain", SCHEMA).batch(100).transform(exported.plan)
        found = {}
        with pipe.open(executor="inline") as batches:
            for batch in batches:
                found |= dict(zip(batch.row_ids.tolist(), exported(batch)[:, 0].sigmoid().tolist(), strict=True))
        expected = [row["p_click"] for row in first]
        np.testing.assert_allclose([found[row["row_id"]] for row in first], expected, rtol=1e-5)


def test_one_job_trains_on_every_layout_with_the_same_rows_in_each_window(folder: Path) -> None:
    def ledger(layout: str, schema_of: str) -> list[set[int]]:
        job = job_over(folder, layout, schema_of=schema_of, run=f"{layout}-by-{schema_of}")
        Trainer(job).run()
        files = sorted(Path(job.run, "ledger").glob("*.parquet"))
        return [set(pq.read_table(file)["row_id"].to_pylist()) for file in files]

    expected = ledger("plain", "plain")
    assert [len(window) for window in expected] == [300, 300]
    for layout, schema_of in (("plain", "nested"), ("nested", "plain"), ("clustered", "nested"), ("nested", "nested")):
        assert ledger(layout, schema_of) == expected, (layout, schema_of)


def test_with_map_functions_scoring_needs_no_column_of_a_copy(folder: Path, tmp_path: Path) -> None:
    job = job_over(folder, "nested", schema_of="nested", run="mapped", map=["headrace.testing.functions:same"])
    Trainer(job).run()
    first, *others = [predictions(job, folder / layout, tmp_path / "out.parquet") for layout in LAYOUTS]
    assert others == [first, first]
