"""Delta checkpoints: bytes written and read, and times to restore, against other policies of incremental checkpoints.

A table group (dimension 16, row-wise Adagrad, 92 bytes a row with id and metadata) is trained; after each version all
policies write the same changes in the same format of files. `zipf`: a tenth of the rows changes per version, chosen
by a Zipf law of exponent 1.05; `uniform`: any tenth. Versions spread over all are restored, from files that the
system's cache does not have, and from files that it has; the limit is reading the bytes of all rows in sequence into
memory that was used before, with nothing done to them. `incremental` is a naive chain, which applies all versions in
order. `large` is `zipf` with more rows, of which a naive chain and ours are written; fixed costs, such as opening
files, matter less there. The stall is the time in which a step waits for a checkpoint, as a part of all time, in a loop
of updates.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import harness
import numpy as np
from checkpoints.policies import Differential, IncrCP, Incremental, Ours, Policy, Whole, drop_cache

from headrace.embeddings import Keys, RowWiseAdagradConfig, TableConfig, TableGroup
from headrace.embeddings.changes.delta import Delta
from headrace.logs.generate import GenerateConfig, generate_logs
from headrace.observe.progress import Progress
from headrace.threads import use_threads
from headrace.training import Trainer
from headrace.training.checkpoint import CheckpointFolder, Snapshot
from headrace.training.checkpoint_writer import CheckpointsConfig, CheckpointWriter
from headrace.training.job import JobConfig

DIM = 16
RAW_BYTES = 8 + 4 * DIM + 4 + 8 + 4 + 4
"""Bytes of a row as raw columns: id, weights, optimizer state, version, frequency, table."""
SHARE = 0.1
OURS = "headrace"
WRITTEN, REWRITTEN = "bytes written per changed byte", "bytes rewritten per changed byte"
RESTORE, FROM_CACHE, READ = "restore", "restore from the cache", "bytes read per live byte"


def new_group(num_rows: int) -> TableGroup:
    table = TableConfig(
        name="t",
        kind="collisionless",
        num_embeddings=num_rows,
        embedding_dim=DIM,
        optimizer=RowWiseAdagradConfig(lr=0.1),
    )
    return TableGroup([table], seed=0)


def keys_of(ids: np.ndarray) -> Keys:
    return Keys(np.zeros(len(ids), np.int32), ids, np.ones(len(ids), np.int32))


def train(group: TableGroup, ids: np.ndarray, rng: np.random.Generator) -> None:
    gradients = rng.standard_normal((len(ids), DIM), dtype=np.float32)
    group.update(keys_of(ids), gradients)


def changed_ids(kind: str, num_rows: int, rng: np.random.Generator, places: np.ndarray) -> np.ndarray:
    """A tenth of the ids, ascending."""
    count = int(SHARE * num_rows)
    if kind == "uniform":
        return np.sort(rng.choice(num_rows, count, replace=False))
    found = np.empty(0, dtype=np.int64)
    while len(found) < count:
        ranks = rng.zipf(1.05, 4 * count)
        found = np.union1d(found, places[ranks[ranks <= num_rows] - 1])
    return np.sort(rng.permutation(found)[:count])


def policies(report: harness.Report, kind: str, num_rows: int, num_versions: int, folder: Path) -> str:
    """Bytes and restores of policies on one stream of changes; returns the name of the case."""
    rng = np.random.default_rng(1)
    places = rng.permutation(num_rows)
    peers: dict[str, type[Policy]] = {"incremental": Incremental}
    if kind != "large":
        peers = {"whole": Whole, "differential": Differential, **peers, "incrcp": IncrCP}
    arms = {name: make(_new(folder / name)) for name, make in peers.items()}
    arms[OURS] = Ours(_new(folder / OURS), num_versions)
    if kind != "large":
        arms[f"{OURS}, int8"] = Ours(_new(folder / "int8"), num_versions, weights="int8")
    group = new_group(num_rows)
    train(group, np.arange(num_rows), rng)
    changed_bytes = []
    with Progress(f"versions, {kind}", total=num_versions, unit="versions") as progress:
        for number in range(1, num_versions + 1):
            if number > 1:
                train(group, changed_ids(kind, num_rows, rng, places), rng)
            delta: Delta = group.delta()
            state = {} if kind == "large" else group.state_dict()
            for arm in arms.values():
                arm.save(number, delta, state)
            group.mark_saved(delta.version)
            changed_bytes.append(RAW_BYTES * len(delta.rows["ids"]))
            progress.update(number)
    case = f"{kind}, {num_versions} versions of {num_rows:,} rows"
    live_bytes = RAW_BYTES * num_rows
    for name, arm in arms.items():
        arm.close()
        report.add(case, name, WRITTEN, "", [sum(arm.written[1:]) / sum(changed_bytes[1:])])
        report.add(case, name, REWRITTEN, "", [arm.rewritten / sum(changed_bytes[1:])])
        if name != "whole":
            report.add(case, name, "bytes on the disk over all rows", "", [arm.disk_bytes() / live_bytes])
    restores(report, case, arms, num_versions, live_bytes, folder)
    return case


def restores(
    report: harness.Report, case: str, arms: dict[str, Policy], num_versions: int, live_bytes: int, folder: Path
) -> None:
    """Time and bytes to restore versions spread over all of them, with the files on disk, and in the system's cache."""
    plain = Sequential(folder / "plain", live_bytes)
    versions = np.unique(np.linspace(2, num_versions, 8).astype(int)).tolist()
    seconds: dict[tuple[str, str], list[float]] = {}
    read_bytes: dict[str, list[float]] = {name: [] for name in arms}
    expected: dict[int, np.ndarray] = {}
    for number in versions:
        for name, arm in arms.items():
            of_arm = num_versions if name == "whole" else number
            files = arm.files(of_arm)
            ids = arm.restore(of_arm)  # also takes files that were just written to the disk out of the measurement
            assert np.array_equal(np.sort(ids), expected.setdefault(number, np.sort(ids))), (name, number)
            read_bytes[name].append(sum(path.stat().st_size for path in files) / live_bytes)
            for kind, took in _times(partial(arm.restore, of_arm), files).items():
                seconds.setdefault((name, kind), []).append(took)
        for kind, took in _times(plain.read, [plain.path]).items():
            seconds.setdefault(("read", kind), []).append(took)
    for name in arms:
        report.add(case, name, READ, "", read_bytes[name])
        for kind, metric in (("disk", RESTORE), ("cache", FROM_CACHE)):
            report.add(case, name, metric, "s", seconds[name, kind])
    for kind, metric in (("disk", RESTORE), ("cache", FROM_CACHE)):
        report.compare(case, OURS, metric, lower_is_better=True)
        bandwidth = live_bytes / float(np.median(seconds["read", kind]))
        of_ours = live_bytes / report.median(case, OURS, metric)
        report.limit(case, f"sequential read, {kind}", bandwidth / 1e6, "MB/s", reached=of_ours / 1e6)


class Sequential:
    """A file with the bytes of all rows, read in sequence into memory that was used before."""

    def __init__(self, path: Path, num_bytes: int) -> None:
        self.path = path
        path.write_bytes(np.random.default_rng(0).bytes(num_bytes))
        self._target = np.ones(num_bytes, np.uint8)

    def read(self) -> None:
        with self.path.open("rb", buffering=0) as file:
            assert file.readinto(self._target) == len(self._target)


def _times(restore: Callable[[], object], files: Sequence[Path], rounds: int = 3) -> dict[str, float]:
    """Median seconds of a function whose files are on the disk, and then in the system's cache."""
    seconds: dict[str, list[float]] = {"disk": [], "cache": []}
    until = time.perf_counter() + 2  # a naive chain of a large table takes seconds
    for number in range(rounds):
        if number and time.perf_counter() > until:
            break
        drop_cache(files)
        for kind in seconds:
            start = time.perf_counter()
            restore()
            seconds[kind].append(time.perf_counter() - start)
    return {kind: float(np.median(each)) for kind, each in seconds.items()}


def stall(report: harness.Report, num_rows: int, steps: int, folder: Path) -> None:
    """Waiting for checkpoints as a part of the time of a loop of updates; whole checkpoints beside deltas."""
    rng = np.random.default_rng(2)
    batches = [np.sort(rng.choice(num_rows, 4_000, replace=False)) for _ in range(64)]
    for arm in ("whole", OURS):
        group, checkpoints = new_group(num_rows), CheckpointFolder(_new(folder / f"stall-{arm}"))
        train(group, np.arange(num_rows), rng)
        writer = CheckpointWriter(checkpoints, CheckpointsConfig())
        shares = []
        for number in range(1, 8):
            start = waited = time.perf_counter()
            for step in range(steps):
                train(group, batches[(number * steps + step) % len(batches)], rng)
            waited = time.perf_counter()
            snapshot = Snapshot(number, {"step": number})
            if arm == "whole":
                checkpoints.save(Snapshot(number, {"step": number}, {}, {"g": group.state_dict()}))
            else:
                for version in writer.wait().values():
                    group.mark_saved(version)
                writer.start(snapshot, {"g": group.deltas(everything=not writer.has_base("g"))})
            end = time.perf_counter()
            if number > 1:
                shares.append(100 * (end - waited) / (end - start))
        writer.close()
        report.add("stall", arm, "time in which steps wait", "%", shares)
    report.compare("stall", OURS, "time in which steps wait", lower_is_better=True)


def lossy(report: harness.Report, num_rows: int, folder: Path) -> None:
    """Log loss of a run of eleven windows that is restored before ten of them, with int8 deltas and with exact ones."""
    generate_logs(GenerateConfig(rows=num_rows, windows=11, users=2_000, items=2_000, seed=1), folder / "logs")
    for weights in ("exact", "int8"):
        values: dict[str, Any] = {
            "run": str(folder / f"run-{weights}"),
            "data": {"path": str(folder / "logs")},
            "training": {"checkpoints": {"kind": "delta", "weights": weights}, "precision": "fp32"},
        }
        job = JobConfig.from_dict(values, where="job").resolve(folder)
        for _ in range(11):
            windows = Trainer(job).run(windows=1).windows
        (scores,) = windows[0].run.scores.values()
        report.add("10 restores", f"{OURS}, {weights}", "log loss", "nats", [scores.log_loss])


def goals(report: harness.Report, cases: list[str]) -> None:
    """What was to be reached, and what was."""
    for case in cases:
        written = report.median(case, OURS, WRITTEN)
        report.goal(f"{case}: bytes written per changed byte", "<= 1.1", f"{written:.2f}", met=written <= 1.1)
        in_all = written + report.median(case, OURS, REWRITTEN)
        report.goal(f"{case}: with what merges write", "<= 1.1", f"{in_all:.2f}", met=in_all <= 1.1)
        if not case.startswith("large"):
            whole, int8 = (report.median(case, arm, WRITTEN) for arm in ("whole", f"{OURS}, int8"))
            report.goal(f"{case}: fewer bytes than whole", ">= 6x", f"{whole / written:.1f}x", met=whole >= 6 * written)
            report.goal(f"{case}: with merges", ">= 6x", f"{whole / in_all:.1f}x", met=whole >= 6 * in_all)
            report.goal(f"{case}: int8, fewer bytes than raw rows", ">= 4x", f"{1 / int8:.2f}x", met=4 * int8 <= 1)
        for kind, metric in (("disk", RESTORE), ("cache", FROM_CACHE)):
            ratio = report.median(case, "incremental", metric) / report.median(case, OURS, metric)
            goal = f"{case}, from the {kind}: restore, faster than a naive chain"
            report.goal(goal, ">= 6.6x", f"{ratio:.1f}x", met=ratio >= 6.6)
        what = "sequential read, disk"
        share = next(limit.share for limit in report.limits if (limit.case, limit.what) == (case, what))
        goal = f"{case}, from the disk: restore over a sequential read"
        report.goal(goal, "<= 1.2x", f"{1 / share:.1f}x", met=share >= 1 / 1.2)
    exact, int8 = (report.median("10 restores", f"{OURS}, {arm}", "log loss") for arm in ("exact", "int8"))
    gap = int8 - exact
    report.goal("int8: log loss after 10 restores, above exact", "<= 0.0005", f"{gap:.5f}", met=abs(gap) <= 5e-4)
    waits = report.median("stall", OURS, "time in which steps wait")
    report.goal("time in which steps wait for checkpoints", "<= 1 %", f"{waits:.2f} %", met=waits <= 1)


def _new(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def main(options: argparse.Namespace) -> None:
    """Run the benchmark."""
    use_threads(None)
    num_rows, num_large, num_versions, steps = (
        (20_000, 200_000, 20, 300) if options.quick else (200_000, 1_000_000, 150, 1_500)
    )
    report = harness.Report("bench_checkpoints")
    notes: dict[str, Any] = {"changed rows per version": f"{SHARE:.0%} of all rows"}
    report.notes |= notes
    cases = []
    with tempfile.TemporaryDirectory(prefix="headrace-bench-checkpoints-", dir=options.folder or None) as folder:
        for kind, size in (("zipf", num_rows), ("uniform", num_rows), ("large", num_large)):
            cases.append(policies(report, kind, size, num_versions, _new(Path(folder) / kind)))
            shutil.rmtree(Path(folder) / kind)
        stall(report, num_rows, steps, Path(folder))
        lossy(report, 11_000 if options.quick else 110_000, Path(folder))
    goals(report, cases)
    report.finish(options)


if __name__ == "__main__":
    main(harness.options("bench_checkpoints", __doc__, folder=""))
