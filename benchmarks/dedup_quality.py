"""Effect of batches of whole sessions, which are correlated, on accuracy: AUC and normalised entropy by row order.

All arms train on the same rows, window by window, except the last window. There are two scores. "Held out" is on the
last window, with the same rows in time order for all arms. "Before use" is on the training windows, with each row
predicted before it is used; there, time order has seen earlier rows of a row's session, and batches of whole sessions
have not. The arms are:

- time order: rows as logged, the order of a job without clustering
- rows shuffled: single rows in blocks of 50,000
- sessions in order: the clustered log, without shuffling
- sessions shuffled: whole sessions in blocks of 50,000

Seeds change the initial values of the model and the shuffles.

    .venv/bin/python benchmarks/dedup_quality.py
    .venv/bin/python benchmarks/dedup_quality.py --log logs/ --hours 24    # yours: its first 24 folders
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import harness

from headrace.logs import Schema
from headrace.logs.clustering import ClusterConfig, cluster_log
from headrace.logs.generate import GenerateConfig, generate_logs
from headrace.scoring import Scorer
from headrace.training import JobConfig, Trainer

SEEDS = (1, 2, 3)
BLOCK_ROWS = 50_000
ARMS = {
    "time order": ("plain", None),
    "rows shuffled": ("plain", "row"),
    "sessions in order": ("clustered", None),
    "sessions shuffled": ("clustered", "session"),
}


def main() -> None:
    """Train all arms with all seeds."""
    options = harness.options("dedup_quality", __doc__, log="", rows=240_000, hours=24)
    report = harness.Report("dedup_quality")
    with tempfile.TemporaryDirectory(prefix="headrace-quality-") as folder:
        base = Path(folder)
        if options.log:
            case, plain = Path(options.log).name, Path(options.log)
        else:
            rows = 30_000 if options.quick else options.rows
            case, plain = f"generated, {rows:,} rows", base / "logs"
            generate_logs(GenerateConfig(rows=rows, windows=4), plain)
        windows = sorted(str(path) for path in plain.iterdir() if path.is_dir())[: options.hours]
        schema = Schema.from_yaml(plain / "schema.yaml")
        cluster_log(str(plain), base / "clustered", schema, ClusterConfig())
        logs = {"plain": plain, "clustered": base / "clustered"}
        scores: dict[str, dict[str, list[float]]] = {arm: {} for arm in ARMS}
        for seed in SEEDS[: 1 if options.quick else None]:
            for arm, (log, shuffle) in ARMS.items():
                job = _job(logs[log], base / f"{arm}-{seed}", plain / "schema.yaml", shuffle, seed)
                for metric, value in _scores(job, len(windows) - 1, windows[-1]).items():
                    scores[arm].setdefault(metric, []).append(value)
        for arm, found in scores.items():
            for metric, values in found.items():
                report.add(case, arm, metric, "", values)
        _print_differences(report, case)
    report.finish(options)


def _job(logs: Path, run: Path, schema: Path, shuffle: str | None, seed: int) -> JobConfig:
    order = None if shuffle is None else {"num_rows": BLOCK_ROWS, "seed": seed, "by": shuffle}
    values: dict[str, Any] = {
        "run": str(run),
        "data": {"path": str(logs), "schema": str(schema)},
        "pipeline": {"shuffle": order, "tuner": "none"},
        "embeddings": {
            "default": {
                "kind": "collisionless",
                "num_embeddings": 4096,
                "optimizer": {"kind": "rowwise_adagrad", "lr": 0.05},
            }
        },
        "model": {"kind": "dlrm", "embedding_dim": 16, "bottom": [64, 32], "top": [128, 64]},
        "training": {"batch_size": 512, "seed": seed, "dense_optimizer": {"kind": "adam", "lr": 0.001}},
    }
    return JobConfig.from_dict(values, where="dedup_quality").resolve(Path.cwd())


def _scores(job: JobConfig, num_windows: int, held_out: str) -> dict[str, float]:
    """Train, and return AUC and normalised entropy of the held-out window and of the others, weighted by rows."""
    results = Trainer(job).run(windows=num_windows).windows
    rows = sum(result.rows.num_used for result in results)
    (last,) = Scorer(job).evaluate(held_out).values()
    found = {"AUC, held out": last.auc, "NE, held out": last.ne}
    for label, name in (("AUC", "auc"), ("NE", "ne")):
        values = [getattr(next(iter(result.scores.values())), name) * result.rows.num_used for result in results]
        found[f"{label}, before use"] = sum(values) / rows
    return found


def _print_differences(report: harness.Report, case: str) -> None:
    """Print the difference of each arm from time order, and the spread of seeds."""
    for metric in dict.fromkeys(row.metric for row in report.rows):
        rows = {row.arm: row for row in report.rows if row.metric == metric}
        noise = max(row.p90 - row.p10 for row in rows.values())
        for arm, row in rows.items():
            if arm != "time order" and not math.isnan(noise):
                difference = row.median - rows["time order"].median
                print(f"{case}: {metric}: {arm} {difference:+.4f} against time order; seeds differ by {noise:.4f}")


if __name__ == "__main__":
    main()
