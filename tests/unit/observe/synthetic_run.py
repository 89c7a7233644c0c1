"""A made-up run folder with everything a report can show."""

import json
import math
from pathlib import Path

import numpy as np

CONFIG = "model: dlrm\nlogs: logs/\nbatch_size: 4096\n"


def write_run(folder: Path, *, num_steps: int = 600, num_windows: int = 3, seed: int = 0) -> Path:
    """Write `metrics.jsonl`, `decisions.jsonl` and `config.yaml`; one step record a step of 4096 rows."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(CONFIG)
    per_window = max(1, num_steps // num_windows)
    time_s, lines = 0.0, []
    for step in range(1, num_steps + 1):
        wait = 0.030 if step < num_steps // 3 else 0.004
        seconds = {"wait": wait, "pull": 0.004, "forward": 0.008, "backward": 0.014, "push": 0.006}
        seconds["dense_optimizer"] = 0.002
        seconds = {name: value * float(random.uniform(0.8, 1.3)) for name, value in seconds.items()}
        time_s += sum(seconds.values())
        learned = 1 - math.exp(-3 * step / num_steps)
        window = f"2026-11-{(step - 1) // per_window + 1:02d}"
        record = {
            "kind": "step",
            "time_s": time_s,
            "step": step,
            "rows": step * 4096,
            "window": window,
            "loss": 0.60 - 0.12 * learned + float(random.normal(0, 0.012)),
            "auc": 0.58 + 0.18 * learned,
            "ne": 1.0 - 0.16 * learned,
            "rows_per_s": 4096 / sum(seconds.values()),
            "seconds": seconds,
            "stages": {
                "read": _stage(random, 2, 4e6, wait * 0.9, 1 + (step >= num_steps // 3)),
                "shuffle": _stage(random, 1, 9e6, 0.004, 1),
                "transform": _stage(random, 5 if wait < 0.01 else 1, 2e6, 0.012, 1),
            },
            "threads": 2 if step < num_steps // 2 else 4,
            "cpus": 2 if step < num_steps // 2 else 4,
            "bytes_in_flight": 15e6,
            "budget_bytes": 64e6,
            "memory_bytes": 4e8 + 2e8 * learned,
            "memory_limit_bytes": 8e8,
        }
        lines.append(record)
        if step % per_window == 0:
            lines.append(_window(window, per_window, learned, time_s))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    change = {
        "time_s": time_s * 0.45,
        "who": "tuner",
        "change": {"read.workers": [1, 2]},
        "reason": "the trainer waits 48 % of its time and read is busy 97 %",
        "snapshot": {"wait_ratio": 0.48},
    }
    nothing = {"time_s": time_s * 0.8, "who": "tuner", "change": {}, "reason": "the trainer hardly waits"}
    (folder / "decisions.jsonl").write_text(json.dumps(change) + "\n" + json.dumps(nothing) + "\n")
    return folder


def _stage(random: np.random.Generator, queue: int, num_bytes: float, busy_s: float, workers: int) -> dict[str, float]:
    return {
        "queue": float(random.poisson(queue)),
        "bytes": num_bytes * float(random.uniform(0.7, 1.3)),
        "busy_s": busy_s,
        "workers": workers,
    }


def _window(name: str, num_steps: int, learned: float, time_s: float) -> dict[str, object]:
    rows = num_steps * 4096
    return {
        "kind": "window",
        "window": name,
        "rows": rows,
        "seconds": num_steps * 0.05,
        "rows_per_s": rows / (num_steps * 0.05),
        "auc": 0.60 + 0.17 * learned,
        "log_loss": 0.58 - 0.10 * learned,
        "ne": 0.98 - 0.15 * learned,
        "calibration": 1.02 - 0.015 * learned,
        "best_ne": 0.79,
        "baseline_auc": 0.68,
        "read": rows + 15,
        "dropped": 0,
        "quarantined": 15,
        "time_s": time_s,
    }
