"""DLRM on Criteo's display advertising log, one pass in four windows in file order, beside a logistic regression."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from sklearn.linear_model import SGDClassifier

from headrace.cli.tables import text_table
from headrace.logs import ParquetSource, list_files, select_files
from headrace.logs.importers import CriteoConfig, import_criteo
from headrace.observe.report import write_report
from headrace.tensors import Batch
from headrace.training import BinaryMetrics, JobConfig, Scores, Trainer
from headrace.training.batch_size import largest_batch
from headrace.training.components import build_components
from headrace.training.feed import PlannedSources, open_batches, source_columns

BORDERS = [-1, 0, 1, 2, 3, 4, 5, 7, 9, 12, 16, 22, 30, 45, 70, 110, 200, 400, 1000, 3000, 10000, 30000]
"""About logarithmic, finer where most of Criteo's counts lie."""

RATES = (0.001, 0.003, 0.01, 0.03, 0.1)
HASH_BITS = 20

Rows = dict[str, list[tuple[sp.csr_matrix, np.ndarray]]]
"""By window: batches of features [B, 2 ** HASH_BITS] and labels [B]."""


def job(logs: Path, run: Path) -> JobConfig:
    """Each number is used twice: as it is (log1p), and as the bucket it falls into."""
    numbers, ids = [f"I{i}" for i in range(1, 14)], [f"C{i}" for i in range(1, 27)]
    buckets = {f"{name}_bucket": {"from": name, "ops": [{"bucketize": {"borders": BORDERS}}]} for name in numbers}
    values = {
        "run": str(run),
        "data": {"path": str(logs), "window": {"kind": "file"}},
        "features": {
            "dense": {name: [{"fill": 0}, {"clamp": {"min": 0}}, "log1p"] for name in numbers},
            "sparse": {name: [{"fill": 0}] for name in ids} | buckets,
        },
        "embeddings": {
            "default": {
                "kind": "collisionless",
                "init_scale": 0.01,
                "optimizer": {"kind": "rowwise_adagrad", "lr": 0.05},
            }
        },
        "model": {"kind": "dlrm", "embedding_dim": 16, "bottom": [128, 64], "top": [256, 128]},
        "training": {"batch_size": 256, "dense_optimizer": {"kind": "adam", "lr": 0.001}},
    }
    return JobConfig.from_dict(values, where="recipes/criteo.py").resolve(Path.cwd())


@dataclass(frozen=True)
class Outcome:
    """Progressive scores by window, of the model and of the best baseline."""

    model: dict[str, Scores]
    baseline: dict[str, Scores]
    rate: float
    report: Path


def run(source: Path, out: Path, *, windows: int = 4) -> Outcome:
    """Import the log, train the first `windows` of its four parts, and the baseline on the same rows in their order."""
    logs = out / "logs"
    if not (logs / "schema.yaml").exists():
        import_criteo(source, logs, CriteoConfig(parts=4))
    shutil.rmtree(out / "run", ignore_errors=True)
    config = job(logs, out / "run")
    model = {}
    for _ in range(windows):  # each turn goes on from the checkpoint of the last, as a job started every hour would
        for window in Trainer(config).run(windows=1).windows:
            model[window.name] = window.scores["label"]
    rows = hashed_rows(config, windows)
    baselines = {rate: logistic_regression(rows, rate) for rate in RATES}
    rate = min(RATES, key=lambda rate: last(baselines[rate]).log_loss)
    return Outcome(model, baselines[rate], rate, write_report(config.run))


def logistic_regression(rows: Rows, rate: float) -> dict[str, Scores]:
    """Logistic regression by gradient descent; like the model it predicts each batch before it learns it."""
    classifier = SGDClassifier(loss="log_loss", penalty=None, learning_rate="constant", eta0=rate)
    scores = {}
    for name, batches in rows.items():
        metrics = BinaryMetrics()
        for features, labels in batches:
            known = hasattr(classifier, "coef_")
            logits = classifier.decision_function(features) if known else np.zeros(len(labels))
            metrics.update(logits.astype(np.float32), labels)
            classifier.partial_fit(features, labels, classes=[0, 1])
        scores[name] = metrics.compute()
    return scores


def hashed_rows(config: JobConfig, windows: int) -> Rows:
    """The model's rows in the model's order, by window, as batches of hashed features and labels."""
    plan = build_components(config).plan
    rows: Rows = {}
    for file in list_files(config.data.path)[:windows]:
        columns = source_columns(config, plan)
        source = ParquetSource(select_files([file]), config.schema_of_logs, columns=columns)
        batch_size = largest_batch(config.training.batch_size)
        sources = PlannedSources(config, plan, [lambda source=source: source], batch_size=batch_size)
        with open_batches(config, sources) as batches:
            rows[file.name] = list(hashed(batches))
    return rows


def hashed(batches: Iterable[Batch]) -> Iterator[tuple[sp.csr_matrix, np.ndarray]]:
    """Each batch as a sparse matrix with a one for each hashed (feature, id), numbers by their buckets."""
    for batch in batches:
        rows, group = len(batch), batch.sparse[0]
        bag = np.repeat(np.arange(len(group.lengths)), group.lengths.numpy())
        feature = (bag // rows).astype(np.uint64)
        ids = group.values.numpy().astype(np.uint64) + (feature << np.uint64(40))
        columns = (ids * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - HASH_BITS)
        places = (bag % rows, columns.astype(np.int64))
        yield sp.csr_matrix((np.ones(len(ids)), places), shape=(rows, 1 << HASH_BITS)), batch.labels.numpy()[:, 0]


def last(scores: dict[str, Scores]) -> Scores:
    """The scores of the last window."""
    return list(scores.values())[-1]


def main() -> None:
    """Run the recipe and print model and baseline side by side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="Criteo's 40-column text, plain or gzip")
    parser.add_argument("out", type=Path, help="folder for logs and run")
    parser.add_argument("--fast", action="store_true", help="the first of the four windows only")
    options = parser.parse_args()
    outcome = run(options.source, options.out, windows=1 if options.fast else 4)
    rows = [
        [name, f"{s.rows:,}", f"{s.auc:.4f}", f"{s.log_loss:.4f}", f"{b.auc:.4f}", f"{b.log_loss:.4f}"]
        for (name, s), b in zip(outcome.model.items(), outcome.baseline.values(), strict=True)
    ]
    print(text_table(["window", "rows", "AUC", "log loss", "LR AUC", "LR log loss"], rows))
    print(f"LR: hashed logistic regression, best of the rates {RATES}: {outcome.rate}\nreport: {outcome.report}")


if __name__ == "__main__":
    main()
