"""The baseline's AUC over all rows of a run, also of one that goes on in another process."""

import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from headrace.logs.generate import GenerateConfig, generate_logs
from headrace.training import JobConfig, Trainer, TrainResult

BASELINE, OTHER = "item_x0", "item_x1"


def train(folder: Path, baseline: str | None) -> TrainResult:
    """Train on the next window."""
    job = {
        "run": "run",
        "data": {"path": "logs"},
        "model": {"kind": "dlrm", "embedding_dim": 4, "bottom": [8], "top": [8]},
        "embeddings": {"default": {"kind": "hashed", "num_embeddings": 64}},
        "training": {"batch_size": 64, "threads": 1, "baseline": baseline},
    }
    return Trainer(JobConfig.from_dict(job, where="job").resolve(folder)).run(windows=1)


def test_it_is_that_of_all_rows_unless_earlier_ones_had_another_baseline(tmp_path: Path) -> None:
    generate_logs(GenerateConfig(rows=1_800, windows=3, users=50, items=40, seed=5), tmp_path / "logs")
    (first,), (second,) = (train(tmp_path, BASELINE).windows for _ in range(2))
    assert first.run is not None
    assert second.run is not None
    assert first.run.baseline_auc == first.baseline_auc
    files = sorted((tmp_path / "logs").rglob("*.parquet"))[:2]
    rows = pa.concat_tables(pq.read_table(file, partitioning=None) for file in files)
    expected = roc_auc_score(rows["click"].to_numpy(), rows[BASELINE].to_numpy())
    assert second.run.baseline_auc == pytest.approx(expected, abs=1e-3)
    assert second.run.baseline_auc != pytest.approx(second.baseline_auc, abs=1e-4)

    (third,) = train(tmp_path, OTHER).windows
    assert third.run is not None
    assert not math.isnan(third.baseline_auc)
    assert math.isnan(third.run.baseline_auc)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = [line["run"]["baseline_auc"] for line in lines if line["kind"] == "window"]
    assert found == [first.run.baseline_auc, second.run.baseline_auc, None]
