"""Answering requests over HTTP: how many per second within a promised time, against other servers of the same model.

All servers answer with the same DLRM (13 numbers, 26 ids, tables of 40,000 rows of dimension 16, MLPs of 512 and
256), with weights from one run of headrace; answers of peers are within 1e-5 of it, and those of headrace are the
same bits as `headrace predict`. Bodies are the same JSON for all. Each server has one process and one thread for the
model, and one core for all its processes; the client has the other core. Peers put requests together for at most 2
ms, up to 64 requests; headrace does so by itself.

The client is open-loop: requests are due by a Poisson process, and the time of an answer counts from when its request
was due. A rate counts if 99 % of the requests are answered within 20 ms, and at most one in a thousand is refused.
`wrk` gives the rate with 128 connections that each wait for an answer. Last, requests are counted in one process while
versions change.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import harness
import numpy as np
from serve.open_loop import Target, http_request, run_open_loop
from serve.peers import Settings
from serve.search import PROMISE_MS, highest_rate
from serve.servers import OURS, SERVERS, Server, free_port, missing_for, running
from serve.swaps import requests_under_swaps
from serve.workload import Workload, check_probabilities, make_workload

from headrace.observe.progress import Progress
from headrace.training import JobConfig

MAX_WAIT_MS, MAX_REQUESTS = 2.0, 64
WRK_CLIENTS = 128
"""Twice the largest batch, so that batches of peers fill up."""
RATE = f"requests per second with p99 below {PROMISE_MS:g} ms"
ARROW = "application/vnd.apache.arrow.stream"
OURS_ARROW = f"{OURS}, Arrow"
MIB = 1 << 20


def main(options: argparse.Namespace) -> None:
    """Run the benchmark."""
    report = harness.Report("bench_serve")
    sizes = (1, 100) if options.quick else (1, 200)
    with tempfile.TemporaryDirectory(prefix="headrace-bench-serve-") as folder:
        workload = make_workload(Path(folder), num_rows=16_384 if options.quick else 131_072)
        for num_records in sizes:
            for server in SERVERS:
                if (server.quick or not options.quick) and not (why := missing_for(server)):
                    measure(report, workload, server, num_records, quick=options.quick)
                elif not server.quick and options.quick:
                    continue
                else:
                    print(f"{server.name}: left out, {why}", file=sys.stderr)
            case = case_of(num_records)
            report.compare(case, OURS, RATE)
        goals(report, sizes)
        changing_versions(report, workload, quick=options.quick)
    report.finish(options)


def case_of(num_records: int) -> str:
    """Name of a case."""
    return f"requests of {num_records} row{'s' if num_records > 1 else ''}"


def measure(report: harness.Report, workload: Workload, server: Server, num_records: int, *, quick: bool) -> None:
    """Measure one server, as JSON, and headrace also as Arrow."""
    seconds, steps, repeats = (1.0, 1, 0) if quick else (2.0, 2, 1)
    settings = Settings(str(workload.weights), free_port(), MAX_REQUESTS, MAX_REQUESTS * num_records, MAX_WAIT_MS)
    log = workload.folder / f"{server.module or OURS}.log"
    forms = [(server.name, "json", "application/json")]
    if server.name == OURS:
        forms.append((OURS_ARROW, "arrow", ARROW))
    case = case_of(num_records)
    with running(server, workload, settings, log):
        for arm, kind, content_type in forms:
            bodies = workload.bodies(num_records, kind)
            target = Target(settings.port, [http_request(server.path, body, content_type) for body in bodies])
            if kind == "json":
                check(server, target, workload, num_records)
                closed = wrk(settings.port, server.path, bodies[0], 1 if quick else 3)
                report.add(case, arm, f"requests per second, {WRK_CLIENTS} waiting clients (wrk)", "1/s", [closed])
            found = highest_rate(target, 2000 / num_records**0.7, seconds=seconds, steps=steps, repeats=repeats)
            if found.rate:
                report.add(case, arm, RATE, "1/s", [found.rate])
            else:
                report.notes[f"{case}, {arm}"] = "never answered 99 % of the requests within the time"
            for percent in (50, 99, 99.9) if found.outcomes else ():
                times = [outcome.percentile_ms(percent) for outcome in found.outcomes]
                report.add(case, arm, f"p{percent:g} at that rate", "ms", times)
            note = ", the client is the limit" if found.is_limited_by_client else ""
            if note:
                report.notes[f"{case}, {arm}: client"] = "a higher rate failed while the client itself was late"
            print(f"{case}, {arm}: {found.rate:,.0f} per second{note}", file=sys.stderr, flush=True)


def check(server: Server, target: Target, workload: Workload, num_records: int) -> None:
    """Compare answers with what headrace predicts offline."""
    import json

    expected = workload.expected()
    outcome = run_open_loop(target, np.linspace(0, 0.5, 20), keep_every=1)
    for number, body in outcome.kept:
        answer = json.loads(body)
        given = answer  # BentoML
        if isinstance(answer, dict):
            given = answer["scores"]["label"] if "scores" in answer else answer["probabilities"]
        rows = slice(number * num_records, (number + 1) * num_records)
        check_probabilities(given, expected[rows], where=server.name)
        if server.name == OURS and not np.array_equal(np.array(given, np.float32), expected[rows]):
            raise ValueError("headrace: answers are not the bits of headrace predict")
    if len(outcome.kept) < 10:
        raise ValueError(f"{server.name}: only {len(outcome.kept)} of 20 answers: {outcome.statuses}")


def wrk(port: int, path: str, body: bytes, seconds: int) -> float:
    """Good answers per second of clients that each wait for an answer; NaN without `wrk`."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "body").write_bytes(body)
        script = Path(folder) / "post.lua"
        script.write_text(
            f'local f = io.open("{folder}/body", "rb")\nwrk.method = "POST"\nwrk.body = f:read("*a")\n'
            'wrk.headers["Content-Type"] = "application/json"\n'
        )
        command = ["taskset", "-c", "1", "wrk", "-t1", f"-c{WRK_CLIENTS}", f"-d{seconds}s", "-s", str(script)]
        try:
            done = subprocess.run(
                [*command, f"http://127.0.0.1:{port}{path}"], capture_output=True, text=True, check=True
            )
        except (FileNotFoundError, subprocess.CalledProcessError):
            return float("nan")
    answered = re.search(r"(\d+) requests in ([\d.]+)s", done.stdout)
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", done.stdout)
    if answered is None:
        return float("nan")
    return (int(answered[1]) - (int(refused[1]) if refused else 0)) / float(answered[2])


def goals(report: harness.Report, sizes: tuple[int, ...]) -> None:
    """Compare with what was aimed at."""
    for num_records in sizes:
        case = case_of(num_records)
        ours = report.median(case, OURS, RATE)
        peers = {
            row.arm: row.median
            for row in report.rows
            if row.case == case and row.metric == RATE and OURS not in row.arm
        }
        best = max(peers, key=lambda name: peers[name])
        factor = ours / max(peers[best], 1e-9)
        report.goal(f"{case}: rate over the best peer, {best}", ">= 2x", f"{factor:.2f}x", met=factor >= 2)
        arrow = report.median(case, OURS_ARROW, RATE) / ours
        report.goal(f"{case}: Arrow over JSON", ">= 3x", f"{arrow:.2f}x", met=arrow >= 3)


def changing_versions(report: harness.Report, workload: Workload, *, quick: bool) -> None:
    """Count answers while versions change."""
    requests, swaps, rollbacks = (20_000, 50, 5) if quick else (1_000_000, 1_000, 20)
    with Progress("versions change", total=requests) as progress:
        counts = requests_under_swaps(
            JobConfig.from_file(workload.job),
            workload.rows().slice(0, 4),
            requests=requests,
            swaps=swaps,
            rollbacks=rollbacks,
            on_request=progress.advance,
        )
    case = f"{counts.requests:,} requests, {counts.swaps:,} changes of version"
    report.add(case, OURS, "errors", "", [counts.errors])
    report.add(case, OURS, "answers not wholly of one version", "", [counts.torn])
    bad = counts.errors + counts.torn
    report.goal(f"{case}, {counts.rollbacks} of them back: errors and torn answers", "0", str(bad), met=bad == 0)


if __name__ == "__main__":
    main(harness.options("bench_serve", __doc__))
