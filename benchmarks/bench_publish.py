"""Publishing to replicas: age of changed rows, bytes, rollback and torn reads; against snapshots, Redis and NATS.

A trainer changes rows of a table of dimension 16 by a Zipf law of exponent 1.05 and publishes versions; replicas are
at the ends of a star of network namespaces, whose links have 0.1 or 1 Gb/s each (root is needed for these cases). All
arms publish the same changes of the same table. A row's age is the time from its change until a reader at a replica
sees it. Bytes are those that the trainer's machine sends, with headers, over those of changed rows as raw rows of 88
bytes (key, version, float32 weights). Rollbacks and torn reads are measured in one process.

`floor`: with a period t, U(t) rows change, and sending them takes U(t) b / C seconds for b bytes per row and C bytes
per second; it is the t that equals this time, or 0 if each period's rows take less. Trainer, replicas and servers
share the machine's cores, so ages also have the time for which each waits for a core.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import harness
import numpy as np
from publish.network import Star, can_make_namespaces

from headrace.embeddings import Keys, TableConfig, embedding_bags
from headrace.embeddings.changes.delta import Columns
from headrace.embeddings.changes.encoding import rounded
from headrace.embeddings.tables.state import TableGroupHeader
from headrace.logs.generate import GenerateConfig, generate_logs
from headrace.observe.progress import Progress
from headrace.publishing.served_tables import ServedTables, ServedVersion
from headrace.scoring import Scorer
from headrace.training import JobConfig, Trainer

DIM = 16
RAW_BYTES = 8 + 8 + 8 + 4 * DIM
"""Key, version and weights of a row, as the comparison in the literature counts them: 88 bytes."""
OURS, EXACT = "headrace, int8", "headrace, exact"
ARMS = (OURS, EXACT, "snapshot + zstd", "Redis Streams", "NATS JetStream")
SERVERS = {"Redis Streams": "redis-server", "NATS JetStream": "nats-server"}
LIBRARIES = {"snapshot + zstd": "zstandard", "Redis Streams": "redis", "NATS JetStream": "nats"}
AGE, SENT = "p99 age of a changed row", "bytes sent per raw byte of changed rows"
WAIT_S = 60.0


class Agents:
    """The processes at the ends."""

    def __init__(self, star: Star, stack: ExitStack) -> None:
        self._processes = []
        for end in range(len(star.hosts)):
            role = "trainer" if end == 0 else "replica"
            command = [sys.executable, str(Path(__file__).parent / "publish" / "agent.py"), role]
            process = subprocess.Popen(
                star.command(end, command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            stack.callback(_end, process)
            self._processes.append(process)
        for end in range(len(star.hosts)):
            self.answer(end)

    def ask(self, end: int, do: str, **values: Any) -> None:
        """Send a command."""
        stdin = self._processes[end].stdin
        assert stdin is not None
        stdin.write(json.dumps({"do": do, **values}) + "\n")
        stdin.flush()

    def answer(self, end: int) -> dict[str, Any]:
        """The answer to the oldest command."""
        stdout = self._processes[end].stdout
        assert stdout is not None
        line = stdout.readline()
        if not line:
            raise RuntimeError(f"the process at end {end} has ended")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise RuntimeError(f"end {end}: {found['error']}")
        return found

    def call(self, ends: Sequence[int], do: str, **values: Any) -> list[dict[str, Any]]:
        """Send a command to several ends, and return their answers."""
        for end in ends:
            self.ask(end, do, **(values | ({"me": end} if do == "start" and end else {})))
        return [self.answer(end) for end in ends]


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


@contextmanager
def server_of(arm: str, star: Star, folder: Path) -> Iterator[None]:
    """The server that an arm needs, at the trainer's end."""
    host = star.hosts[0]
    commands = {
        "redis-server": ["--bind", host, "--save", "", "--dir", str(folder), "--protected-mode", "no"],
        "nats-server": ["--addr", host, "--jetstream", "--store_dir", str(folder / "nats")],
    }
    name = SERVERS.get(arm)
    if name is None:
        yield
        return
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(star.command(0, [name, *commands[name]]), **quiet)
    try:
        time.sleep(0.5)
        yield
    finally:
        process.kill()
        process.wait()


def missing_for(arm: str) -> str:
    """What an arm needs that is not there."""
    if arm in SERVERS and shutil.which(SERVERS[arm]) is None:
        return f"needs {SERVERS[arm]}"
    try:
        __import__(LIBRARIES.get(arm, "numpy"))
    except ImportError:
        return f"needs {LIBRARIES[arm]}"
    return ""


def publish(agents: Agents, star: Star, arm: str, num_replicas: int, sizes: dict[str, Any]) -> dict[str, Any]:
    """Run an arm once: ages of all changes at all replicas, bytes sent, and whether rows are equal at the end."""
    replicas = range(1, num_replicas + 1)
    with tempfile.TemporaryDirectory(prefix="headrace-bench-publish-") as name, server_of(arm, star, Path(name)):
        num_rows, hosts = sizes["rows"], star.hosts[: num_replicas + 1]
        agents.call([0], "start", arm=arm, num_rows=num_rows, host=hosts[0], folder=f"{name}/trainer")
        for end in replicas:
            agents.ask(end, "start", arm=arm, num_rows=num_rows, hosts=hosts, me=end, folder=f"{name}/{end}")
        for end in replicas:
            agents.answer(end)
        for found in agents.call(replicas, "wait", version=1, seconds=WAIT_S):
            if found["newest"] < 1:
                raise RuntimeError(f"{arm}: no replica has the first version after {WAIT_S:g} s")
        before = star.sent_bytes(0)
        timing = {"seconds": sizes["seconds"], "every_s": sizes["every_s"], "touches_per_s": sizes["touches_per_s"]}
        (run,) = agents.call([0], "run", **timing)
        arrived = agents.call(replicas, "wait", version=run["version"], seconds=WAIT_S)
        sent = star.sent_bytes(0) - before
        (mine,) = agents.call([0], "rows")
        theirs = agents.call(replicas, "stop")
        agents.call([0], "stop")
    ages = np.concatenate([ages_of(run, replica["seen"]) for replica in theirs])
    if arm == OURS:
        is_equal = all(abs(replica["sum"] / mine["sum"] - 1) < 1e-3 for replica in theirs)
    else:
        is_equal = all(replica["sha256"] == mine["sha256"] for replica in theirs)
    has_all = all(found["newest"] >= run["version"] for found in arrived)
    return {
        "p50": float(np.percentile(ages, 50)),
        "p99": float(np.percentile(ages, 99)),
        "sent": sent,
        "changed": run["changed"],
        "versions": len(run["cuts"]),
        "unique_after": run["unique_after"],
        "is_right": is_equal and has_all,
        "cpu_s": run["cpu_s"] + sum(replica["cpu_s"] for replica in theirs),
    }


def ages_of(run: dict[str, Any], seen: list[tuple[int, float]]) -> np.ndarray:
    """Ages of changes when they became visible at a replica, one for about each hundred changes.

    Changes of a batch are in the first version that was cut after it, and in all later ones.
    """
    cuts = np.array([cut_at for _, cut_at in run["cuts"]])
    versions = np.array([version for version, _ in run["cuts"]])
    times = np.array(run["times"])
    first = np.minimum(np.searchsorted(cuts, times), len(cuts) - 1)
    seen_versions = np.maximum.accumulate([version for version, _ in seen])
    place = np.searchsorted(seen_versions, versions[first])
    seen_at = np.array([*(at for _, at in seen), np.inf])[np.minimum(place, len(seen))]
    return np.repeat(seen_at - times, np.maximum(1, np.array(run["counts"]) // 100))


def floor_s(unique_after: list[tuple[float, int]], bytes_per_row: float, gbit: float) -> float:
    """The period whose changed rows take as long to send; 0 if those of each period take less."""
    per_s = gbit * 1e9 / 8
    found = 0.0
    for seconds, rows in unique_after:
        if rows * bytes_per_row / per_s >= seconds:
            found = seconds
    return found


def links(report: harness.Report, sizes: dict[str, Any], rounds: int) -> None:
    """Ages and bytes of all arms."""
    arms = []
    for arm in ARMS:
        why_not = missing_for(arm)
        if why_not:
            print(f"{arm}: left out, {why_not}", file=sys.stderr)
        else:
            arms.append(arm)
    with ExitStack() as stack:
        star = stack.enter_context(Star(5))
        agents = Agents(star, stack)
        runs = [(arm, 2) for arm in arms] + [(OURS, 1), (OURS, 4)]
        progress = stack.enter_context(Progress("publish", total=len(sizes["links"]) * rounds * len(runs), unit="runs"))
        star.set_rate(1)
        publish(agents, star, OURS, 4, sizes | {"seconds": 1.0})  # compiles, and is not counted
        for gbit in sizes["links"]:
            star.set_rate(gbit)
            round_trip = star.round_trip_s(1)
            results: dict[tuple[str, int], list[dict[str, Any]]] = {run: [] for run in runs}
            for _ in range(rounds):
                for arm, num_replicas in runs:
                    results[arm, num_replicas].append(publish(agents, star, arm, num_replicas, sizes))
                    progress.advance(columns={"last": f"{arm}, {num_replicas} replicas, {gbit:g} Gb/s"})
            add_results(report, gbit, round_trip, results, sizes)


def add_results(
    report: harness.Report,
    gbit: float,
    round_trip: float,
    results: dict[tuple[str, int], list[dict[str, Any]]],
    sizes: dict[str, Any],
) -> None:
    """Rows, ratios and goals of a link."""
    for (arm, num_replicas), found in results.items():
        case = case_of(gbit, num_replicas)
        report.add(case, arm, "median age of a changed row", "s", [each["p50"] for each in found])
        report.add(case, arm, AGE, "s", [each["p99"] for each in found])
        raw = [each["sent"] / num_replicas / (RAW_BYTES * each["changed"]) for each in found]
        report.add(case, arm, f"{SENT}, per replica", "", raw)
        report.add(case, arm, "versions", "1/s", [each["versions"] / sizes["seconds"] for each in found])
        report.add(case, arm, "processor time of all", "s", [each["cpu_s"] for each in found])
        if not all(each["is_right"] for each in found):
            report.notes.setdefault("wrong", []).append(f"{case}: {arm}: rows differ from the trainer's at the end")
    two = case_of(gbit, 2)
    report.compare(two, OURS, AGE, lower_is_better=True)
    ours = results[OURS, 2]
    bytes_per_row = float(np.median([each["sent"] / each["changed"] for each in ours]))
    floor = floor_s(ours[0]["unique_after"], bytes_per_row, gbit)
    p99 = report.median(two, OURS, AGE)
    goal = 1.2 * (floor + round_trip)
    report.goal(
        f"{two}: p99 age; floor {floor:.2g} s{'' if floor else ' (rows change slower than the link sends them)'}, "
        f"round trip {1000 * round_trip:.2g} ms, a version every {sizes['every_s']:g} s",
        f"<= {goal:.3g} s",
        f"{p99:.3g} s",
        met=p99 <= goal,
    )
    report.goal(f"{two}: p99 age", "< 1 s", f"{p99:.3g} s", met=p99 < 1)
    fewer = {
        arm: 1 / float(np.median([each["sent"] / (RAW_BYTES * each["changed"]) for each in results[arm, 2]]))
        for arm in (OURS, EXACT)
    }
    report.goal(
        f"{two}: bytes sent by the trainer, fewer than raw rows once (exact rows: {fewer[EXACT]:.1f}x)",
        ">= 4x",
        f"{fewer[OURS]:.1f}x",
        met=fewer[OURS] >= 4,
    )
    one, four = (np.median([each["sent"] / each["changed"] for each in results[OURS, number]]) for number in (1, 4))
    report.goal(
        f"{gbit:g} Gb/s: bytes sent by the trainer for 4 replicas, over those for 1",
        "<= 1.3x",
        f"{four / one:.2f}x",
        met=four <= 1.3 * one,
    )


def case_of(gbit: float, num_replicas: int) -> str:
    return f"{gbit:g} Gb/s, {num_replicas} replica{'s' if num_replicas > 1 else ''}"


def quality(report: harness.Report, num_rows: int, folder: Path) -> None:
    """AUC of a window that a model was not trained on, with exact rows and with the int8 ones of publications."""
    generate_logs(GenerateConfig(rows=num_rows, windows=6, users=2_000, items=2_000, seed=1), folder / "logs")
    last = max(path for path in (folder / "logs").iterdir() if path.is_dir())
    values: dict[str, Any] = {
        "run": str(folder / "run"),
        "data": {"path": str(folder / "logs")},
        "training": {"precision": "fp32"},
    }
    job = JobConfig.from_dict(values, where="job").resolve(folder)
    Trainer(job).run(windows=5)
    scorer, scores = Scorer(job), {}
    for weights in ("exact", "int8"):
        if weights == "int8":
            round_rows(scorer)
        (scores[weights],) = scorer.evaluate(str(last)).values()
        report.add("next window", f"headrace, {weights}", "AUC", "", [scores[weights].auc])
        report.add("next window", f"headrace, {weights}", "log loss", "nats", [scores[weights].log_loss])
    change = scores["int8"].auc - scores["exact"].auc
    report.goal("int8: change of AUC on the next window", "<= 1e-4", f"{change:+.1e}", met=abs(change) <= 1e-4)


def round_rows(scorer: Scorer) -> None:
    """Give a model the rows that readers of a publication with int8 weights have."""
    for bags in embedding_bags(scorer.components.model).values():
        assert bags.table_group is not None
        columns = bags.table_group.state_dict()
        bags.load_tables([columns | {"weights": rounded(columns["weights"], "int8")}])


def rollback(report: harness.Report, num_rows: int, rounds: int) -> None:
    """Time until a replica serves the version before, of which a tenth of the rows differs."""
    tables, header = ServedTables(keep=3), table_header(num_rows)
    apply(tables, header, 1, np.arange(num_rows), everything=True)
    apply(tables, header, 2, np.arange(0, num_rows, 10), everything=False)
    model_bytes = 4 * DIM * num_rows
    seconds = []
    for number in range(rounds):
        to = 1 + number % 2
        start = time.perf_counter()
        tables.serve(to)
        row = tables.read("items", keys_of(np.zeros(1, np.int64)))
        seconds.append(time.perf_counter() - start)
        assert row[0, 0] == to
    case = f"rollback of {model_bytes / 1e9:.2g} GB"
    report.add(case, "headrace", "until the first read of the version", "s", seconds)
    report.add(case, "headrace", "model over time", "GB/s", [model_bytes / 1e9 / each for each in seconds])
    worst = max(seconds)
    report.goal(f"{case}, longest of {rounds}", "< 1 s", f"{worst:.2g} s", met=worst < 1)


def torn_reads(report: harness.Report, num_rows: int, num_reads: int, num_threads: int = 2) -> None:
    """Reads of 64 rows while versions are applied that set each row to the number of the version."""
    tables, header = ServedTables(keep=3), table_header(num_rows)
    everything = np.arange(num_rows)
    apply(tables, header, 1, everything, everything=True)
    torn = [0] * num_threads

    def read(thread: int) -> None:
        rng = np.random.default_rng(thread)
        some = [keys_of(np.sort(rng.choice(num_rows, 64, replace=False))) for _ in range(64)]
        for number in range(num_reads // num_threads):
            rows = tables.read("items", some[number % len(some)])
            torn[thread] += bool((rows != rows[0, 0]).any())

    threads = [threading.Thread(target=read, args=(thread,)) for thread in range(num_threads)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    version = 1
    while any(thread.is_alive() for thread in threads):
        version += 1
        apply(tables, header, version, everything, everything=False)
    seconds = time.perf_counter() - start
    case = f"{num_reads:,} reads of 64 rows"
    report.add(case, "headrace", "torn reads", "", [float(sum(torn))])
    report.add(case, "headrace", "versions meanwhile", "", [float(version - 1)])
    report.add(case, "headrace", "reads", "1/s", [num_reads / seconds])
    report.goal(
        f"torn reads in {num_reads:,}, under {version - 1} versions of all rows", "0", str(sum(torn)), met=not sum(torn)
    )


def table_header(num_rows: int) -> TableGroupHeader:
    return TableGroupHeader.of(
        [TableConfig(name="t", kind="collisionless", num_embeddings=num_rows, embedding_dim=DIM)], seed=0
    )


def apply(tables: ServedTables, header: TableGroupHeader, version: int, ids: np.ndarray, *, everything: bool) -> None:
    """Apply a version whose rows have its number."""

    def blocks() -> Iterator[tuple[str, str, Columns]]:
        for first in range(0, len(ids), 65_536):
            part = ids[first : first + 65_536]
            weights = np.full((len(part), DIM), version, np.float32)
            yield "items", "rows", {"tables": np.zeros(len(part), np.int32), "ids": part, "weights": weights}

    about = ServedVersion(version, version, time.time(), {})
    tables.apply(about, {"items": (header,)}, blocks(), everything=everything)


def keys_of(ids: np.ndarray) -> Keys:
    return Keys(np.zeros(len(ids), np.int32), ids, np.zeros(len(ids), np.int32))


def main(options: argparse.Namespace) -> None:
    """Run the benchmark."""
    report = harness.Report("bench_publish")
    if options.quick:
        sizes = {"rows": 50_000, "seconds": 1.5, "every_s": 0.25, "touches_per_s": 100_000, "links": (0.1,)}
        rounds, model_rows, num_reads = 1, 200_000, 20_000
    else:
        sizes = {"rows": 500_000, "seconds": 5.0, "every_s": 0.1, "touches_per_s": 200_000, "links": (0.1, 1.0)}
        rounds, model_rows, num_reads = 3, 2_000_000_000 // (4 * DIM), 1_000_000
    report.notes |= {key: value for key, value in sizes.items() if key != "links"}
    rollback(report, model_rows, 21)
    torn_reads(report, 20_000, num_reads)
    with tempfile.TemporaryDirectory(prefix="headrace-bench-publish-") as folder:
        quality(report, 6_000 if options.quick else 600_000, Path(folder))
    why_not = can_make_namespaces()
    if why_not:
        print(f"links: left out, {why_not}", file=sys.stderr)
    else:
        links(report, sizes, rounds)
    report.finish(options)


if __name__ == "__main__":
    main(harness.options("bench_publish", __doc__))
