"""Training as a service does it: again and again one window, from the last checkpoint to the next.

headrace generate logs --rows 60000 --windows 3
python examples/incremental.py logs run
"""

import sys
from pathlib import Path

from headrace.observe.report import write_report
from headrace.training import JobConfig, Trainer, WindowResult


def job(logs: Path, run: Path) -> JobConfig:
    """The same as a job file with these keys."""
    values = {
        "run": str(run),
        "data": {"path": str(logs), "window": {"kind": "folder"}, "bad_rows": {"policy": "quarantine"}},
        "embeddings": {"default": {"kind": "collisionless", "num_embeddings": 4096}},
        "model": {"kind": "dcnv2", "embedding_dim": 16, "deep": [64, 32], "num_cross_layers": 2},
        "training": {"batch_size": 512},
    }
    return JobConfig.from_dict(values, where="incremental.py").resolve(Path.cwd())


def train(logs: Path, run: Path) -> list[WindowResult]:
    """Window after window until there is nothing new; each call of `Trainer` could be a process of its own."""
    done: list[WindowResult] = []
    while True:
        result = Trainer(job(logs, run)).run(windows=1)
        if not result.windows:
            print(result.rest)
            return done
        window = result.windows[0]
        click = window.scores["click"]
        print(f"{window.name}: {window.rows.num_used:,} rows, AUC {click.auc:.4f}, NE {click.ne:.4f}; {result.rest}")
        done.append(window)


if __name__ == "__main__":
    train(Path(sys.argv[1]), Path(sys.argv[2]))
    print("report:", write_report(Path(sys.argv[2])))
