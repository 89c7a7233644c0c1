"""The benchmark harness: interleaved arms, medians with spread, a common JSON format, and tables.

A benchmark is a script with two options, `--quick` (under a minute on 2 cores) and `--json PATH`::

    options = harness.options("bench_x", __doc__)
    report = harness.Report("bench_x")
    samples = harness.interleave({"headrace": ours, "numpy": theirs}, rounds=20)
    for arm, seconds in samples.items():
        report.add("case", arm, "rows per second", "1/s", [rows / s for s in seconds])
    report.compare("case", "headrace", "rows per second")
    report.finish(options)
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = [
    "CpuUse",
    "Limit",
    "Ratio",
    "Report",
    "Row",
    "copy_gib_per_s",
    "interleave",
    "machine",
    "options",
    "single_threaded",
]


@dataclass(frozen=True)
class Row:
    """Result of one arm of one case: the median of `n` samples with 10th and 90th percentiles."""

    case: str
    arm: str
    metric: str
    unit: str
    median: float
    p10: float
    p90: float
    n: int


@dataclass(frozen=True)
class Ratio:
    """Ratio of headrace to another arm; above 1, headrace is better."""

    case: str
    ours: str
    against: str
    value: float


@dataclass(frozen=True)
class Limit:
    """A limit of the machine, and the share of it that headrace reaches."""

    case: str
    what: str
    value: float
    unit: str
    share: float


@dataclass
class Report:
    """Collects results, prints them, and writes them as JSON."""

    benchmark: str
    rows: list[Row] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    limits: list[Limit] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    def add(self, case: str, arm: str, metric: str, unit: str, samples: Sequence[float]) -> Row:
        """Add the samples of one arm, and return their row."""
        low, middle, high = _percentiles(samples)
        row = Row(case, arm, metric, unit, middle, low, high, len(samples))
        self.rows.append(row)
        return row

    def median(self, case: str, arm: str, metric: str) -> float:
        """Return the median of an arm that was added before."""
        return next(r.median for r in self.rows if (r.case, r.arm, r.metric) == (case, arm, metric))

    def goal(self, what: str, wanted: str, reached: str, *, met: bool) -> None:
        """Add a row to the table of goals."""
        self.notes.setdefault("goals", []).append(
            {"what": what, "wanted": wanted, "reached": reached, "met": bool(met)}
        )

    def compare(
        self, case: str, ours: str, metric: str, *, against: Sequence[str] | None = None, lower_is_better: bool = False
    ) -> None:
        """Add the ratios of headrace's median to those of other arms (all arms of the case unless named)."""
        mine = self.median(case, ours, metric)
        for row in self.rows:
            if row.case != case or row.metric != metric or row.arm == ours or (against and row.arm not in against):
                continue
            value = row.median / mine if lower_is_better else mine / row.median
            self.ratios.append(Ratio(case, ours, row.arm, value))

    def limit(self, case: str, what: str, value: float, unit: str, *, reached: float) -> None:
        """Add a limit of the machine and the value that headrace reaches."""
        self.limits.append(Limit(case, what, value, unit, reached / value))

    def to_json(self) -> dict[str, Any]:
        """Return the results in the common JSON format."""
        return {
            "benchmark": self.benchmark,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "rows": [asdict(row) for row in self.rows],
            "ratios": [asdict(ratio) for ratio in self.ratios],
            "limits": [asdict(limit) for limit in self.limits],
            **({"notes": self.notes} if self.notes else {}),
        }

    def finish(self, options: argparse.Namespace) -> None:
        """Print the tables, and write the JSON file if requested."""
        self.print()
        if options.json is not None:
            self.write(options.json)
            print(f"\nwritten: {options.json}")

    def write(self, file: str) -> None:
        """Write the results as JSON."""
        path = Path(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")

    def print(self) -> None:
        """Print rows, ratios and limits as tables."""
        if self.rows:
            _print_table(
                ["case", "arm", "metric", "median", "p10", "p90", "unit", "n"],
                [
                    [r.case, r.arm, r.metric, *map(_short, (r.median, r.p10, r.p90)), r.unit, str(r.n)]
                    for r in self.rows
                ],
            )
        if self.ratios:
            _print_table(
                ["case", "ours", "against", "ratio"],
                [[r.case, r.ours, r.against, f"{r.value:.2f}x"] for r in self.ratios],
            )
        if self.limits:
            _print_table(
                ["case", "machine limit", "value", "unit", "share"],
                [[m.case, m.what, _short(m.value), m.unit, f"{m.share:.0%}"] for m in self.limits],
            )


def interleave(
    arms: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 30,
    seconds: float | None = None,
    warm_up: int = 1,
    what: str | None = None,
) -> dict[str, list[float]]:
    """Run all arms in turn (A B C A B C ...), so that drift of the machine affects them equally.

    After two seconds it shows progress on standard error, between samples.

    Args:
        arms: Functions without arguments by name. The sample is the wall time, unless the function returns a float,
            which is then the sample (for arms that time only part of their work).
        rounds: Samples per arm.
        seconds: Stop after this long, but not before three rounds.
        warm_up: Uncounted rounds at the start, for compilation and caches.
        what: Name in the progress display; None for the script's name.

    Returns:
        Samples of each arm.
    """
    from headrace.observe.progress import Progress  # imported after `single_threaded`

    samples: dict[str, list[float]] = {name: [] for name in arms}
    total = (warm_up + rounds) * len(arms) if seconds is None else None
    with Progress(what or Path(sys.argv[0]).stem, total=total, unit="runs") as progress:
        for _ in range(warm_up):
            for name, run in arms.items():
                run()
                progress.advance(columns={"warming up": name})
        start = time.perf_counter()
        for number in range(rounds):
            if seconds is not None and number >= 3 and time.perf_counter() - start > seconds:
                break
            for name, run in arms.items():
                begin = time.perf_counter()
                result = run()
                samples[name].append(result if isinstance(result, float) else time.perf_counter() - begin)
                progress.advance(columns={"warming up": None, "round": f"{number + 1} of {rounds}", "last": name})
    return samples


class CpuUse:
    """CPUs used since creation, by this process and by everything else on the machine.

    A benchmark that needs several cores is not meaningful while others use them. Linux only; zeros elsewhere.
    """

    def __init__(self) -> None:
        self._start = self._read()

    def elapsed(self) -> tuple[float, float]:
        """Return the mean number of CPUs used by (this process and its ended children, everything else)."""
        wall, mine, busy = (now - then for now, then in zip(self._read(), self._start, strict=True))
        return mine / wall, max(0.0, busy - mine) / wall

    @staticmethod
    def _read() -> tuple[float, float, float]:
        times = os.times()
        busy = 0.0
        if Path("/proc/stat").exists():
            ticks = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
            busy = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")  # everything except idle and iowait
        return time.perf_counter(), sum(times[:4]), busy


def options(name: str, description: str | None, **flags: Any) -> argparse.Namespace:
    """Parse the command line of a benchmark; `flags` are further options with default values, False for a switch."""
    parser = argparse.ArgumentParser(name, description=(description or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="smaller, under a minute on 2 cores")
    parser.add_argument("--json", metavar="PATH", help="write the results there")
    for flag, default in flags.items():
        if default is False:
            parser.add_argument(f"--{flag.replace('_', '-')}", action="store_true")
            continue
        kind = str if default is None else type(default)
        parser.add_argument(f"--{flag.replace('_', '-')}", type=kind, default=default, help=f"default {default}")
    return parser.parse_args()


def single_threaded() -> None:
    """Limit every library in this process to one thread; call it before importing them.

    Arms with several threads start them themselves.
    """
    names = ("OMP", "MKL", "OPENBLAS", "NUMBA", "NUMEXPR", "POLARS", "VECLIB")
    for name in names:
        os.environ[f"{name}_{'MAX' if name == 'POLARS' else 'NUM'}_THREADS"] = "1"
    os.environ["ARROW_NUM_THREADS"] = "1"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def machine() -> dict[str, Any]:
    """Describe the machine, and list the versions of the measured libraries."""
    packages = (
        "headrace",
        "torch",
        "numpy",
        "numba",
        "pyarrow",
        "polars",
        "tensorflow",
        "tensorflow-cpu",
        "ray",
        "datasets",
        "torchdata",
        "lightgbm",
        "torch-rechub",
        "torchrec",
    )
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpu": _cpu_name(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_1min": round(os.getloadavg()[0], 2),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def copy_gib_per_s(num_bytes: int = 64 << 20, rounds: int = 10) -> float:
    """Measure the copy rate of one thread in GiB/s, with buffers larger than the caches; each byte counts once."""
    import numpy as np

    source, target = np.ones(num_bytes, np.uint8), np.zeros(num_bytes, np.uint8)
    samples = interleave({"copy": lambda: np.copyto(target, source)}, rounds=rounds)["copy"]
    return num_bytes / statistics.median(samples) / 2**30


def _percentiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """Return the 10th, 50th and 90th percentiles; for fewer than three samples the minimum, median and maximum."""
    if not samples:
        raise ValueError("no samples, expected at least one")
    if len(samples) < 3:
        return min(samples), statistics.median(samples), max(samples)
    deciles = statistics.quantiles(samples, n=10, method="inclusive")
    return deciles[0], statistics.median(samples), deciles[8]


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _short(number: float) -> str:
    """Format with three or four significant digits and thousands separators."""
    if number and abs(number) < 0.01:
        return f"{number:.2e}"
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.4g}"


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(line[at]) for line in [header, *rows]) for at in range(len(header))]
    right = [all(_is_number(row[at]) for row in rows) for at in range(len(header))]
    sys.stdout.write("\n")
    for line in [header, ["-" * width for width in widths], *rows]:
        cells = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)]
        sys.stdout.write("  ".join(cells).rstrip() + "\n")


def _is_number(text: str) -> bool:
    return text.rstrip("x%").replace(",", "").replace(".", "").replace("-", "").replace("e", "").isdigit()
