"""Quality of bf16 matrix products compared with fp32: log loss over one pass, three seeds, real and generated logs.

Each row is predicted before it is trained on, so the log loss of a pass is measured on unseen rows. The same seed gives
both precisions the same initial values and the same row order; the result is the difference between them. The real log
is Criteo's sample (if it is in the folder `HEADRACE_DATA`), trained with the recipe.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import harness

sys.path.insert(0, str(Path(__file__).parent.parent / "recipes"))

from criteo import job as criteo_job

from headrace.logs.generate import GenerateConfig, generate_logs
from headrace.logs.importers import CriteoConfig, import_criteo
from headrace.models.products import has_bf16_products
from headrace.training import JobConfig, Trainer

SEEDS = (0, 1, 2)
GOAL = 0.0005
MakeJob = Callable[[Path, Path], JobConfig]


def generated_job(logs: Path, run: Path) -> JobConfig:
    """Return a job of a DLRM that is large enough that matrix products take most of the time."""
    values = {
        "run": str(run),
        "data": {"path": str(logs)},
        "model": {"kind": "dlrm", "embedding_dim": 16, "bottom": [512, 256], "top": [512, 256]},
        "training": {"batch_size": 4096},
    }
    return JobConfig.from_dict(values, where="bench_precision").resolve(Path.cwd())


def one_pass(make: MakeJob, logs: Path, precision: str, seed: int) -> tuple[float, float]:
    """Train one pass, and return the log loss over all rows and the rows per second."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        job = make(logs, Path(folder) / "run")
        training = job.training.model_copy(update={"precision": precision, "seed": seed})
        begin = time.perf_counter()
        windows = Trainer(job.model_copy(update={"training": training})).run().windows
        seconds = time.perf_counter() - begin
    rows = [window.rows.num_used for window in windows]
    losses = [next(iter(window.scores.values())).log_loss for window in windows]
    return sum(map(float.__mul__, losses, map(float, rows))) / sum(rows), sum(rows) / seconds


def measure(report: harness.Report, case: str, make: MakeJob, logs: Path) -> None:
    """Measure both precisions, seed by seed."""
    found: dict[str, list[tuple[float, float]]] = {"headrace, fp32": [], "headrace, bf16": []}
    for seed in SEEDS:
        for arm, passes in found.items():
            passes.append(one_pass(make, logs, arm.removeprefix("headrace, "), seed))
            print(f"{case}: {arm}, seed {seed}: log loss {passes[-1][0]:.5f}", file=sys.stderr)
    for arm, passes in found.items():
        report.add(case, arm, "log loss of the pass", "", [loss for loss, _ in passes])
        if has_bf16_products():
            report.add(case, arm, "rows per second", "rows/s", [rate for _, rate in passes])
    pairs = zip(found["headrace, bf16"], found["headrace, fp32"], strict=True)
    differences = [bf16 - fp32 for (bf16, _), (fp32, _) in pairs]
    report.add(case, "bf16 less fp32, seed by seed", "log loss of the pass", "", differences)
    worst = statistics.mean(differences)
    report.notes.setdefault("goals", []).append(
        {
            "what": f"{case}: log loss of bf16 less that of fp32, mean of {len(SEEDS)} seeds",
            "wanted": f"within {GOAL}",
            "reached": f"{worst:+.5f}",
            "met": abs(worst) <= GOAL,
        }
    )


def main() -> None:
    """Measure the real and the generated log, and write the report."""
    options = harness.options("bench_precision", __doc__)
    report = harness.Report("bench_precision")
    if not has_bf16_products():
        report.notes["bf16"] = "emulated: this processor has no bf16 products, so rows per second are not shown"
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        data = Path(os.environ.get("HEADRACE_DATA", "")) / "criteo" / "criteo_kaggle_137139.tsv.gz"
        if "HEADRACE_DATA" in os.environ and data.exists() and not options.quick:
            import_criteo(data, Path(folder) / "criteo", CriteoConfig(parts=4))
            measure(report, "Criteo's sample, 137,139 rows", criteo_job, Path(folder) / "criteo")
        elif not options.quick:
            print("skipped: Criteo's sample: not found in HEADRACE_DATA", file=sys.stderr)
        num_rows = 100_000 if options.quick else 2_000_000
        generate_logs(GenerateConfig(rows=num_rows, windows=4), Path(folder) / "logs")
        measure(report, f"generated, {num_rows:,} rows", generated_job, Path(folder) / "logs")
    report.finish(options)


if __name__ == "__main__":
    main()
