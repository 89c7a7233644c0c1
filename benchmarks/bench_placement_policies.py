"""Placement policies on the same streams: what moves, counted in a replay and not timed.

Bytes are those of `headrace.placement.replay.RowBytes`, per step, with what returns to the shards in the end spread
over all steps. `zipf` is one column of a million ids with exponent 1.05, and trainers get random samples. `criteo` is
the public sample of 137,139 rows, with 26 columns of ids. Numbers are exact, so there is one of each.
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness

from headrace.errors import ConfigError
from headrace.logs.importers import CriteoConfig, import_criteo
from headrace.observe.progress import Progress
from headrace.placement.replay import Kind, ReplayResult, RowBytes, RowStream, Setting, replay, zipf_stream
from headrace.registry import PLACEMENT_POLICIES
from headrace.training import JobConfig
from headrace.training.log_rows import read_log_rows

WINDOW, BATCH = 200, 2048
TRAINED, NEW = "trained before", "first training"
"""Whether the shards have rows: until a row is trained, its values are a function of its key, and do not move."""
BYTES, LINK, MISSES, STALE = "bytes per step", "bytes into a trainer per step", "misses per step", "stale reads"
SAMPLE = "criteo/criteo_kaggle_137139.tsv.gz"

EXACT = ("none", "lru", "bagpipe", "herald", "fec", "hotline", "fae", "het_0", "het_gmp")
STALE_POLICIES = ("het_5", "het_100")
OURS = ("lookahead", "lookahead_placed")

TRANSMISSIONS, MOVED, WAITED = "transmissions", "bytes", "bytes that a step waits for"
PUBLISHED = (
    (TRANSMISSIONS, "het_0", "herald", 1.92, "Herald: 1.9x to 9.1x (48 % to 89 % fewer)"),
    (MOVED, "none", "het_100", 8.3, "HET: up to 8.3x (88 % fewer)"),
    (WAITED, "none", "fec", 6.65, "FEC: communication up to 6.65x"),
    (WAITED, "none", "bagpipe", 5.6, "Bagpipe: training up to 5.6x"),
    (MOVED, "none", "fae", 1.52, "FAE: training 1.52x"),
)
"""What is compared, two policies, and what the paper of the second one says (of Herald the least, of others the most);
times are of training there."""


class Cases:
    """Replays policies and reports their counts."""

    def __init__(self, report: harness.Report) -> None:
        self._report = report
        self._goals: list[dict[str, Any]] = []

    def run(
        self, case: str, stream: RowStream, names: Sequence[str], setting: Setting, *, link: bool = False
    ) -> dict[str, ReplayResult]:
        """Replay policies. Those that do not fit into the cache are left out."""
        found = {}
        with Progress(case, total=len(names) * len(stream), unit="steps") as progress:
            for name in names:
                try:
                    policy = PLACEMENT_POLICIES[name]
                    result = replay(stream, policy, setting, on_step=lambda step: progress.advance())
                except ConfigError as error:
                    progress.print(str(error))
                    continue
                found[name] = result
                traffic, steps = result.traffic, result.num_steps
                self._add(case, name, BYTES, "B", (traffic.bytes() + traffic.final_bytes()) / steps)
                if link:
                    self._add(case, name, LINK, "B", traffic.link_bytes() / steps)
                self._add(case, name, MISSES, "rows", traffic.rows(Kind.READ, Kind.FETCH) / steps)
                if result.num_stale or name in STALE_POLICIES:
                    self._add(case, name, STALE, "%", 100 * result.num_stale / result.num_reads)
        self._report.compare(case, names[-1], BYTES, lower_is_better=True)
        return found

    def goal(self, what: str, wanted: float, reached: float, *, at_most: bool = False) -> None:
        """Report a goal; `reached` is a ratio."""
        met = reached <= wanted if at_most else reached >= wanted
        sign = "at most" if at_most else "at least"
        self._goals.append(
            {"what": what, "wanted": f"{sign} {wanted:g}x", "reached": f"{reached:.2f}x", "met": bool(met)}
        )
        self._report.notes["goals"] = self._goals

    def published(self, what: str, paper: str, wanted: float, theirs: float, *, ours: float) -> None:
        """Report what a paper says of its policy, beside the same ratio of it and of headrace here."""
        reached = f"{theirs:.2f}x; lookahead_placed: {ours:.2f}x"
        self._goals.append({"what": what, "wanted": paper, "reached": reached, "met": bool(ours >= wanted)})

    def _add(self, case: str, arm: str, metric: str, unit: str, value: float) -> None:
        self._report.add(case, arm, metric, unit, [value])


def criteo(num_batches: int | None) -> RowStream | None:
    """Global batches of the sample; None where it is absent."""
    data = os.environ.get("HEADRACE_DATA")
    if data is None or not (Path(data) / SAMPLE).exists():
        print("criteo: skipped, HEADRACE_DATA has no sample", file=sys.stderr)
        return None
    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder) / "logs"
        import_criteo(Path(data) / SAMPLE, logs, CriteoConfig())
        ids = {f"C{number}": [{"fill": 0}] for number in range(1, 27)}
        values = {
            "run": str(Path(folder) / "run"),
            "data": {"path": str(logs)},
            "features": {"sparse": ids},
            "embeddings": {"default": {"kind": "collisionless"}},
            "model": {"kind": "dcnv2", "embedding_dim": 16},
        }
        job = JobConfig.from_dict(values, where="bench_placement_policies").resolve(Path.cwd())
        return read_log_rows(job, batch_size=BATCH, num_batches=num_batches).stream


def per_step(result: ReplayResult) -> float:
    """Bytes per step, with what moves in the end."""
    return (result.traffic.bytes() + result.traffic.final_bytes()) / result.num_steps


def one_trainer(cases: Cases, stream: RowStream) -> None:
    """Bytes with one trainer, of rows that the shards have and of rows that no one has trained."""
    for name in (TRAINED, NEW):
        setting = Setting(stream.num_rows, 1, BATCH, WINDOW, None, from_scratch=name == NEW)
        for cache in (None, 50_000):
            size = "no limit" if cache is None else f"{cache:,} rows"
            case = f"criteo, 1 trainer, {name}, cache: {size}"
            found = cases.run(case, stream, ("none", "lru", "belady", "lookahead"), replace(setting, capacity=cache))
            ratio = per_step(found["none"]) / per_step(found["lookahead"])
            cases.goal(f"{case}: bytes of none, against lookahead", 3.0, ratio)


def random_samples(cases: Cases, stream: RowStream) -> None:
    """Two trainers with random samples: what rows that move once save."""
    for dim, state in ((16, TRAINED), (64, TRAINED), (128, TRAINED), (16, NEW)):
        rows = RowBytes(4 * dim, 4)
        setting = Setting(stream.num_rows, 2, BATCH, WINDOW, None, rows, from_scratch=state == NEW)
        case = f"zipf, 2 trainers, {state}, dimension {dim}"
        found = cases.run(case, stream, ("none", "lru", "bagpipe", "lookahead"), setting, link=True)
        ours = found["lookahead"].traffic.link_bytes()
        for name, wanted in (("bagpipe", 2.0), ("none", 1.3)):
            cases.goal(
                f"{case}: bytes into a trainer, {name} against lookahead",
                wanted,
                found[name].traffic.link_bytes() / ours,
            )


def placed_samples(cases: Cases, stream: RowStream) -> None:
    """Two trainers on the sample: all policies, with a tenth of all rows as cache, and without a limit."""
    for state, size in itertools.product((TRAINED, NEW), ("a tenth of all rows", "no limit")):
        cache = None if size == "no limit" else stream.num_rows // 10
        case = f"criteo, 2 trainers, {state}, cache: {size}"
        setting = Setting(stream.num_rows, 2, BATCH, WINDOW, cache, from_scratch=state == NEW)
        found = cases.run(case, stream, (*EXACT, *STALE_POLICIES, *OURS), setting)
        moved = {name: per_step(result) for name, result in found.items()}
        ours = moved["lookahead_placed"]
        cases.goal(f"{case}: bytes of herald, against placed samples", 2.0, moved["herald"] / ours)
        for name in STALE_POLICIES:
            cases.goal(f"{case}: bytes of {name}, against placed samples", 1.0, moved[name] / ours)
        published(cases, case, found)


def published(cases: Cases, case: str, found: dict[str, ReplayResult]) -> None:
    """What papers say of their policies, and the same ratios here. Savings of s % are ratios of 1 / (1 - s)."""
    measures: dict[str, Callable[[ReplayResult], float]] = {
        TRANSMISSIONS: rows_per_step,
        MOVED: per_step,
        WAITED: lambda result: result.traffic.critical_bytes() / result.num_steps,
    }
    for measure, base, name, wanted, paper in PUBLISHED:
        if name in found:
            before, theirs, ours = (measures[measure](found[each]) for each in (base, name, OURS[-1]))
            what = f"{case}: {measure}, {base} over {name}"
            cases.published(what, paper, wanted, before / theirs, ours=before / ours)


def rows_per_step(result: ReplayResult) -> float:
    """Rows and gradients that move per step, with those in the end, without checks of versions."""
    traffic = result.traffic
    return (traffic.rows() - traffic.rows(Kind.CHECK) + traffic.final_rows()) / result.num_steps


def misses(cases: Cases, name: str, stream: RowStream) -> None:
    """Misses of one trainer, against the offline limit, with half the rows that a window keeps or uses."""
    setting = Setting(stream.num_rows, 1, BATCH, WINDOW)
    largest = max(len(batch.rows) for batch in stream.batches)
    for what, rows in (("keeps", stream.resident_rows(WINDOW)), ("uses", stream.distinct_rows(WINDOW))):
        cache = max(int(rows.max()) // 2, largest)
        case = f"{name}, 1 trainer, cache: half of what a window {what}, {cache:,} rows"
        found = cases.run(case, stream, ("lru", "belady", "lookahead"), replace(setting, capacity=cache))
        counts = {arm: result.traffic.rows(Kind.READ, Kind.FETCH) for arm, result in found.items()}
        cases.goal(f"{case}: misses, against belady", 1.05, counts["lookahead"] / counts["belady"], at_most=True)


def main() -> None:
    options = harness.options("bench_placement_policies", __doc__)
    report = harness.Report("bench_placement_policies")
    cases = Cases(report)
    zipf = zipf_stream(num_batches=100 if options.quick else 600, num_samples=BATCH, seed=1)
    random_samples(cases, zipf)
    misses(cases, "zipf", zipf)
    sample = criteo(20 if options.quick else None)
    if sample is not None:
        one_trainer(cases, sample)
        misses(cases, "criteo", sample)
        placed_samples(cases, sample)
    report.finish(options)


if __name__ == "__main__":
    main()
