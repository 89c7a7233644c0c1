"""What placement moves on five logs, for every size of cache and window: counted in a replay, not timed.

Each log is replayed with one and two trainers, with caches of 1, 10 and 50 % of all its rows and of what a window keeps
(a row between two uses), and with windows of 10, 50 and 200 batches. A trainer's cache holds the rows of one global
batch at least. Numbers are MB per step of all trainers, with what returns to the shards in the end; the shards have all
rows from the start. The optimizer is row-wise Adagrad. `zipf-A` has 4 columns of 100,000 ids with exponent A, whose
ranks shift by one per batch; `criteo` is the public sample, `news` the first hours of the Globo.com log with histories.

Only the routes of `lookahead` depend on the dimension; policies without a window, `none`, `lru` and `herald`, only on
the cache. `bagpipe` has no rule for a full memory, and is left out where its rows do not fit.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import harness
from bench_placement_policies import BATCH, criteo, per_step
from quality.logs import MissingLog, make_log

from headrace.errors import ConfigError
from headrace.observe.progress import Progress
from headrace.placement.replay import ReplayResult, RowBytes, RowStream, Setting, replay, zipf_stream
from headrace.registry import PLACEMENT_POLICIES
from headrace.training import JobConfig
from headrace.training.log_rows import read_log_rows

DIMS = (16, 64, 512)
CACHES = {"1 %": 0.01, "10 %": 0.1, "50 %": 0.5, "of the window": None}
WINDOWS = (10, 50, 200)
TRAINERS = (1, 2)
ALPHAS = (0.9, 1.05, 1.2)
ZIPF_BATCHES, ZIPF_BATCHES_QUICK = 250, 20
NEWS_BATCH = 1024
MB = 1e6


def streams(quick: bool) -> Iterator[tuple[str, RowStream]]:
    """The logs by name."""
    if not quick:
        sample = criteo(None)
        if sample is not None:
            yield "criteo", sample
        try:
            yield "news", news()
        except MissingLog as missing:
            print(f"skipped: {missing}", file=sys.stderr)
    for alpha in ALPHAS[1:2] if quick else ALPHAS:
        num_batches = ZIPF_BATCHES_QUICK if quick else ZIPF_BATCHES
        shape = {"num_samples": BATCH, "num_features": 4, "num_ids": 100_000, "seed": 1}
        yield f"zipf-{alpha:g}", zipf_stream(num_batches=num_batches, alpha=alpha, drift=1.0, **shape)


def news() -> RowStream:
    """Global batches of the news log.

    Raises:
        MissingLog: `HEADRACE_DATA` does not have it.
    """
    log = make_log("news")
    with tempfile.TemporaryDirectory() as folder:
        values = {
            "run": folder,
            "data": {"path": str(log.path)},
            "embeddings": {"default": {"kind": "collisionless"}},
            "model": {"kind": "dcnv2", "embedding_dim": 16},
        }
        job = JobConfig.from_dict(values, where="bench_placement_matrix").resolve(Path.cwd())
        return read_log_rows(job, batch_size=NEWS_BATCH).stream


class Matrix:
    """Replays one log with so many trainers, each policy once for everything that it depends on."""

    def __init__(self, report: harness.Report, case: str, stream: RowStream, num_trainers: int) -> None:
        self._report, self._case, self._stream = report, case, stream
        self._num_trainers = num_trainers
        self._ours = "lookahead" if num_trainers == 1 else "lookahead_placed"
        self._others = ("none", "lru") if num_trainers == 1 else ("none", "lru", "herald")
        self._found: dict[tuple[str, Setting], ReplayResult] = {}
        self._ratios: list[float] = []

    def run(self) -> None:
        """Replay all caches and windows."""
        with Progress(self._case, total=len(CACHES) * len(WINDOWS), unit="cells") as progress:
            for name, share in CACHES.items():
                for window in WINDOWS:
                    self._cell(f"cache {name}, window {window}", self._capacity(share, window), window)
                    progress.advance()
        ratios = self._report.notes.setdefault(f"none over {self._ours}, dimension 16", {})
        ratios[self._case] = f"{min(self._ratios):.2f}x to {max(self._ratios):.2f}x"

    def _capacity(self, share: float | None, window: int) -> int:
        """Rows of the cache of each trainer."""
        largest = max(len(batch.rows) for batch in self._stream.batches)
        if share is not None:
            return max(largest, int(share * self._stream.num_rows))
        parts = (self._stream.of_trainer(trainer, self._num_trainers) for trainer in range(self._num_trainers))
        return max(largest, *(int(part.resident_rows(window).max()) for part in parts))

    def _cell(self, arm: str, capacity: int, window: int) -> None:
        self._report.add(self._case, arm, "cache of a trainer", "rows", [capacity])
        for dim in DIMS:
            stream, num_trainers, row_bytes = self._stream, self._num_trainers, RowBytes(4 * dim, 4)
            setting = Setting(stream.num_rows, num_trainers, stream.num_samples, window, capacity, row_bytes)
            names = (*self._others, "bagpipe", "lookahead", self._ours) if dim == DIMS[0] else ("none", self._ours)
            moved = {}
            for name in dict.fromkeys(names):
                result = self._replay(name, setting)
                if result is not None:
                    moved[name] = per_step(result)
                    self._report.add(self._case, arm, f"dim {dim}: {name}", "MB", [moved[name] / MB])
            if dim == DIMS[0]:
                self._ratios.append(moved["none"] / moved[self._ours])

    def _replay(self, name: str, setting: Setting) -> ReplayResult | None:
        """The result of a policy; None if it does not fit."""
        if name in self._others:
            setting = replace(setting, window=1)
        if name == "none":
            setting = replace(setting, capacity=None)
        if (name, setting) not in self._found:
            try:
                self._found[name, setting] = replay(self._stream, PLACEMENT_POLICIES[name], setting)
            except ConfigError:
                return None
        return self._found[name, setting]


def main() -> None:
    """Replay everything, and write the report."""
    options = harness.options("bench_placement_matrix", __doc__)
    report = harness.Report("bench_placement_matrix")
    for name, stream in streams(options.quick):
        report.notes[name] = f"{len(stream)} steps of {stream.num_samples:,} samples, {stream.num_rows:,} rows"
        for num_trainers in TRAINERS:
            plural = "s" if num_trainers > 1 else ""
            Matrix(report, f"{name}, {num_trainers} trainer{plural}", stream, num_trainers).run()
            if options.json is not None:
                report.write(options.json)  # what there is so far, as all takes half an hour
    report.finish(options)


if __name__ == "__main__":
    main()
