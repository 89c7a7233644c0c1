"""A news portal's clicks, hour after hour: every hour is one increment on the checkpoint of the hour before."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from headrace.cli.tables import window_table
from headrace.logs.importers import ClicksConfig, import_clicks
from headrace.logs.importers.click_files import total_bytes
from headrace.observe.progress import Progress
from headrace.observe.report import write_report
from headrace.training import JobConfig, Trainer, WindowResult


def job(logs: Path, run: Path) -> JobConfig:
    """Articles are one table, whether they are the candidate, in the user's history or earlier in the session.

    Articles live for hours: an id gets a row once it was seen twice, and loses it after a day without a click.
    """
    context = ("environment", "device", "os", "country", "region", "referrer", "hour_of_day")
    values = {
        "run": str(run),
        "data": {"path": str(logs), "window": {"kind": "folder"}},
        "features": {
            "dense": {"item_clicks_last_hour": ["log1p"]},
            "sparse": {
                "user": [],
                "item": [],
                "history": [{"first_x": 20}],
                "session_items": [{"first_x": 10}],
                **{name: [] for name in context},
            },
        },
        "embeddings": {
            "default": {
                "kind": "collisionless",
                "init_scale": 0.01,
                "optimizer": {"kind": "rowwise_adagrad", "lr": 0.05},
            },
            "tables": {
                "articles": {
                    "feature_names": ["item", "history", "session_items"],
                    "pooling": {"history": "mean", "session_items": "mean"},
                    "admission_count": 2,
                    "evict_after": 24,
                },
                "user": {"evict_after": 72},
            },
        },
        "model": {"kind": "dlrm", "embedding_dim": 16, "bottom": [32], "top": [128, 64]},
        "training": {
            "batch_size": 1024,
            "dense_optimizer": {"kind": "adam", "lr": 0.001},
            "baseline": "item_clicks_last_hour",
        },
    }
    return JobConfig.from_dict(values, where="recipes/news.py").resolve(Path.cwd())


@dataclass(frozen=True)
class Outcome:
    """Results by hour, and the report with AUC and baseline over the hours."""

    windows: list[WindowResult]
    report: Path


def run(source: Path, out: Path, *, hours: int = 48) -> Outcome:
    """Import the clicks, and train hour after hour, each as a run of its own; goes on where it stopped."""
    logs = out / "logs"
    with Progress("import", total=total_bytes(source), unit="bytes") as progress:
        import_clicks(source, logs, ClicksConfig(), on_hour=lambda read, done: progress.update(read))
    config = job(logs, out / "run")
    windows: list[WindowResult] = []
    for _ in range(hours):
        result = Trainer(config).run(windows=1)
        if not result.windows:
            break
        windows.extend(result.windows)
    return Outcome(windows, write_report(config.run))


def main() -> None:
    """Run the recipe and print each hour beside the popularity baseline."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="the hourly clicks, a tar archive or a folder of CSV files")
    parser.add_argument("out", type=Path, help="folder for logs and run")
    parser.add_argument("--hours", type=int, default=48, help="hours to train on [48]")
    options = parser.parse_args()
    outcome = run(options.source, options.out, hours=options.hours)
    print(window_table(outcome.windows))
    above = sum(window.scores["click"].auc > window.baseline_auc for window in outcome.windows)
    print(f"above the candidate's clicks in the last hour in {above} of {len(outcome.windows)} hours")
    print(f"report: {outcome.report}")


if __name__ == "__main__":
    main()
