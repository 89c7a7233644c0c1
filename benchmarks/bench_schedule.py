"""Scheduling policies on a shaped network link: step time, idle CPU time, hidden communication, and bounds.

Trainer and shard are processes in two network namespaces, each pinned to a core, with `tc tbf` on the veth between
them. This needs root and iproute2; otherwise a user-space relay delays bytes, which takes CPU time of its own. Policies
take turns in one trainer process. `serial` has TensorFlow's step order; `batch_prefetch` works like tf.data, with the
best depth and number of threads of those tried. Peers run their own processes on the same link.

The bounds are computed from the measured phases of `serial`: F features, P pull, M dense, U push.
"""

from __future__ import annotations

import json
import os
import select
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import harness
from schedule import barrier
from schedule.goals import goals_of_case
from schedule.links import Link
from schedule.workloads import NAMES

from headrace.scheduling.bounds import StepParts

HERE = Path(__file__).resolve().parent
UNCOUNTED = 12  # uncounted steps per run of the trainer, averaged over policies
NUM_BEST = 2  # settings of batch_prefetch kept after the first round
RATES = (0.1, 0.3, 1.0, 10.0, None)
MS = 1e3
TIMEOUT_S = 120.0


class Child:
    """A process that answers each line of JSON with another."""

    def __init__(self, command: list[str], environment: dict[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE, env=environment
        )

    def tell(self, command: dict[str, Any]) -> None:
        """Send a command without an answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        """Send a command and wait for the answer."""
        self.tell(command)
        return json.loads(self.line())  # type: ignore[no-any-return]

    def line(self) -> str:
        """Read the next line of its output."""
        assert self._process.stdout is not None
        # Each command has a one-line answer, so the buffer is empty here.
        if not select.select([self._process.stdout], [], [], TIMEOUT_S)[0]:
            raise SystemExit(f"a benchmark process did not answer within {TIMEOUT_S:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a benchmark process ended with {self._process.wait()}")
        return line

    def kill(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Close its input and wait; kill it if it does not end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def arms(quick: bool) -> dict[str, dict[str, Any]]:
    """Return the settings of each arm's policy."""
    found: dict[str, dict[str, Any]] = {"serial": {"policy": "serial"}}
    for ahead in (2,) if quick else (1, 2, 4):
        for threads in (1,) if quick else (1, 2):
            arm = {"policy": "batch_prefetch", "num_ahead": ahead, "num_threads": threads}
            found[f"batch_prefetch {ahead} ahead, {threads} thread{'s' * (threads > 1)}"] = arm
    for policy in ("recs", "recs_early") if quick else ("intra", "inter", "recs", "recs_early"):
        found[policy] = {"policy": policy}
    return found


def measure(trainer: Child, case: str, quick: bool, seconds: float) -> dict[str, list[dict[str, Any]]]:
    """Measure every arm of a case in turn, for about `seconds`; of batch_prefetch, only the best settings stay."""
    policies = arms(quick)
    samples: dict[str, list[dict[str, Any]]] = {name: [] for name in policies}
    first = trainer.ask({"do": "run", "case": "", **policies["serial"], "steps": 4})
    rounds = 2 if quick else 3
    steps = int(seconds / rounds / len(policies) / first["step_s"]) - UNCOUNTED
    steps = max(8, min(40, steps))
    for _ in range(rounds):
        for name, policy in policies.items():
            samples[name].append(trainer.ask({"do": "run", "case": case, **policy, "steps": steps}))
        tried = {name: statistics.median(each["step_s"] for each in samples[name]) for name in policies}
        settings = [name for name in tried if name.startswith("batch_prefetch")]
        for name in sorted(settings, key=lambda name: tried[name])[NUM_BEST:]:
            del policies[name]
    return samples


def report_case(report: harness.Report, case: str, samples: dict[str, list[dict[str, Any]]]) -> None:
    """Report rows, ratios and bounds of one workload on one link."""

    def median(arm: str, key: str) -> float:
        return statistics.median(sample[key] for sample in samples[arm])

    for arm, runs in samples.items():
        report.add(case, arm, "step", "ms", [MS * sample["step_s"] for sample in runs])
        report.add(case, arm, "processor idle", "ratio", [sample["idle_ratio"] for sample in runs])
        report.add(case, arm, "communication hidden", "ratio", [sample["hidden_ratio"] for sample in runs])
    deferred = median("recs_early", "deferred_ratio")
    parts = StepParts(
        *(median("serial", key) for key in ("features_s", "pull_s", "dense_s", "push_s")), deferred_ratio=deferred
    )
    # Only settings measured in every round count: the speed of the machine varies, and one sample may be lucky.
    every = [arm for arm in samples if arm.startswith("batch_prefetch") and len(samples[arm]) == len(samples["serial"])]
    best = min(every, key=lambda arm: median(arm, "step_s"))
    for ours in ("recs", "recs_early"):
        report.compare(case, ours, "step", against=["serial", best], lower_is_better=True)
    step_s = {arm: median(arm, "step_s") for arm in ("serial", "recs", "recs_early")}
    step_s["batch_prefetch"] = median(best, "step_s")
    report.notes.setdefault("goals", []).extend(goals_of_case(case, parts, step_s))
    reached = ", ".join(f"{arm} {MS * seconds:.1f} ms" for arm, seconds in step_s.items())
    print(f"{case}: {reached}", file=sys.stderr, flush=True)
    for what, value, arm in (
        ("strict bound M + max(F, P + U)", parts.strict_s, "recs"),
        ("early bound max(F + M, P + U)", parts.early_s, "recs_early"),
        (f"exact early bound, {deferred:.0%} of keys deferred", parts.early_exact_s, "recs_early"),
    ):
        # As a share of the step time: a step at its bound has 100 %.
        report.limits.append(harness.Limit(case, f"{what}; {arm}", MS * value, "ms", value / median(arm, "step_s")))
    shares = {"F": parts.features_s, "P": parts.pull_s, "M": parts.dense_s, "U": parts.push_s}
    report.notes[case] = {name: f"{MS * value:.1f} ms" for name, value in shares.items()} | {
        "fastest strategies": ", ".join(f"{arm}: {samples[arm][-1]['strategy']}" for arm in ("recs", "recs_early")),
        "communication": f"{parts.communication_ratio:.0%} of serial",
        "bound over batch_prefetch": f"{median(best, 'step_s') / parts.strict_s:.2f}x strict, "
        f"{median(best, 'step_s') / parts.early_exact_s:.2f}x early",
        "bound over serial": f"{median('serial', 'step_s') / parts.strict_s:.2f}x strict",
    }


def in_process(report: harness.Report, trainer: Child, quick: bool) -> None:
    """Measure the cost of the scheduler when there is nothing to hide."""
    for workload in NAMES[:1] if quick else NAMES:
        print(f"{workload}, rows in this process", file=sys.stderr, flush=True)
        trainer.ask({"do": "load", "workload": workload, "address": "", "quick": quick})
        samples: dict[str, list[float]] = {"plain loop": [], "recs": []}
        for _ in range(3 if quick else 7):
            for name, arm in (("plain loop", "plain"), ("recs", "recs")):
                samples[name].append(MS * trainer.ask({"do": "run", "case": "", "policy": arm, "steps": 20})["step_s"])
        for name, values in samples.items():
            report.add(f"{workload}, rows in this process", name, "step", "ms", values)
        report.compare(f"{workload}, rows in this process", "recs", "step", lower_is_better=True)


def name_of(rate: float | None) -> str:
    """Return the name of a link with this bandwidth."""
    return "unshaped" if rate is None else f"{rate:g} Gb/s"


def delayed(report: harness.Report, link: Link, trainer: Child, address: str, quick: bool, seconds: float) -> None:
    """Measure the effect of latency: a relay in front of the shard delays every message, in both directions."""
    workload = NAMES[2]
    for latency_ms in (1.0,) if quick else (1.0, 5.0):
        relay = [sys.executable, "-m", "schedule.relay", "--to", address, "--listen", link.shard_host]
        child = Child(link.command(1, [*relay, "--latency-ms", str(latency_ms)]))
        try:
            to = f"{link.shard_host}:{int(child.line())}"
            trainer.ask({"do": "load", "workload": workload, "address": to, "quick": quick})
            trainer.ask({"do": "run", "case": "", "policy": "recs", "steps": 12})
            case = f"{workload}, {latency_ms:g} ms each way"
            report_case(report, case, measure(trainer, case, quick, seconds))
            trainer.ask({"do": "load", "workload": workload, "address": "", "quick": quick})  # closes its streams
        finally:
            child.kill()


def at_the_barrier(report: harness.Report, quick: bool) -> None:
    """Measure the effect of a background thread on matrix products on two cores, without a network."""
    case = "two cores, no network"
    if len(os.sched_getaffinity(0)) < barrier.CORES:
        report.notes[case] = "skipped: one core"
        return
    child = Child([sys.executable, "-m", "schedule.barrier", "20" if quick else "150"])
    samples = json.loads(child.line())
    child.close()
    for name, seconds in samples.items():
        report.add(case, name, "step", "ms", [MS * each for each in seconds["step"]])
        if name != barrier.FEATURES:
            report.add(case, name, "dense work", "ms", [MS * each for each in seconds["dense"]])
    report.compare(case, barrier.AFTER, "step", against=[barrier.BESIDE], lower_is_better=True)
    dense, features = (report.median(case, name, "step") for name in (barrier.ALONE, barrier.FEATURES))
    bound = dense + features / barrier.CORES
    reached = report.median(case, barrier.AFTER, "step")
    report.limits.append(harness.Limit(case, "all work shared evenly by two cores", bound, "ms", bound / reached))


def main() -> None:
    """Measure all workloads on all links, and write the report."""
    options = harness.options("bench_schedule.py", __doc__, seconds=480.0, peers="auto")
    report = harness.Report("bench_schedule")
    quick = options.quick
    workloads = NAMES[2:] if quick else NAMES
    rates: tuple[float | None, ...] = (1.0, None) if quick else RATES
    seconds = (10.0 if quick else 0.6 * options.seconds) / len(workloads) / len(rates)
    begun = time.perf_counter()
    with ExitStack() as stack:
        link = stack.enter_context(Link())
        report.notes["link"] = (
            "network namespaces and tc tbf" if link.is_real else f"a relay in user space: {link.why_not}"
        )
        shard = Child(link.command(1, [sys.executable, "-m", "schedule.shard", link.shard_host]))
        stack.callback(shard.close)
        address = f"{link.shard_host}:{int(shard.line())}"
        trainer = Child(link.command(0, [sys.executable, "-m", "schedule.trainer"]))
        stack.callback(trainer.close)
        for workload in workloads:
            for rate in rates:
                link.set_rate(None)
                with ExitStack() as relays:
                    to = address
                    if rate is not None and not link.is_real:
                        relay = [
                            sys.executable,
                            "-m",
                            "schedule.relay",
                            "--to",
                            address,
                            "--rate-mbit",
                            str(1000 * rate),
                        ]
                        child = Child(link.command(1, relay))
                        relays.callback(child.kill)
                        to = f"127.0.0.1:{int(child.line())}"
                    if rate == rates[0] or not link.is_real:
                        trainer.ask({"do": "load", "workload": workload, "address": to, "quick": quick})
                        # Creates rows and loads kernels.
                        trainer.ask({"do": "run", "case": "", "policy": "recs", "steps": 12})
                    link.set_rate(rate)
                    case = f"{workload}, {name_of(rate)}"
                    report_case(report, case, measure(trainer, case, quick, seconds))
        link.set_rate(None)
        if not quick:
            delayed(report, link, trainer, address, quick, seconds)
        in_process(report, trainer, quick)
        at_the_barrier(report, quick)
        if options.peers == "yes" or (options.peers == "auto" and not quick):
            from schedule.peers import run_peers

            run_peers(report, link, Child, quick, trainer, address)
    report.notes["seconds"] = round(time.perf_counter() - begun, 1)
    report.finish(options)


if __name__ == "__main__":
    main()
