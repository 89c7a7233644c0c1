"""Runs TensorFlow and torchrec over the same link, in turn with headrace."""

from __future__ import annotations

import json
import os
import socket
import statistics
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import harness

from schedule.goals import goals_of_peers
from schedule.links import DEVICES, HOSTS, Link

__all__ = ["run_peers", "start_peers"]

OURS = ("serial", "recs", "recs_early")
PYTHON = Path(__file__).resolve().parents[2] / ".peers" / "bin" / "python"


def run_peers(
    report: harness.Report, link: Link, child: Callable[..., Any], quick: bool, trainer: Any, address: str
) -> None:
    """Measure the peers that can be started, in turn with headrace's policies; notes name those that cannot.

    Args:
        report: Report to add results to.
        link: Link between the two ends.
        child: Class of a process that answers lines of JSON (`bench_schedule.Child`).
        quick: Whether to measure fewer rounds, without a bandwidth limit.
        trainer: Process of headrace's trainer.
        address: Address of headrace's shard.
    """
    if not PYTHON.exists():
        report.notes["peers"] = "not installed: make peers"
        return
    link.set_rate(None)
    with ExitStack() as stack:
        asks = start_peers(report, link, child, stack, "criteo")
        trainer.ask({"do": "load", "workload": "criteo", "address": address, "quick": quick})
        for policy in OURS:
            asks[policy] = lambda steps, policy=policy: trainer.ask(  # type: ignore[misc]
                {"do": "run", "case": case, "policy": policy, "steps": steps}
            )["step_s"]
        for rate in (None,) if quick else (1.0, None):
            link.set_rate(rate)
            case = f"criteo beside peers, {'unshaped' if rate is None else f'{rate:g} Gb/s'}"
            samples: dict[str, list[float]] = {name: [] for name in asks}
            for _ in range(2 if quick else 3):
                for name, ask in list(asks.items()):
                    try:
                        samples[name].append(1e3 * ask(8 if quick else 20))
                    except (OSError, SystemExit) as error:
                        if name in OURS:
                            raise
                        report.notes[f"peer {name}"] = f"left out from {case} on: {error}"
                        del asks[name], samples[name]
            for name, values in samples.items():
                report.add(case, name, "step", "ms", values)
            for ours in ("recs", "recs_early"):
                others = [name for name in samples if name not in OURS]
                report.compare(case, ours, "step", against=others, lower_is_better=True)
            medians = {name: statistics.median(values) for name, values in samples.items()}
            report.notes.setdefault("goals", []).extend(goals_of_peers(case, medians))
            print(f"{case}: " + ", ".join(f"{name} {ms:.1f} ms" for name, ms in medians.items()), file=sys.stderr)
            report.notes[case] = {name: f"{ms:.1f} ms" for name, ms in medians.items()}
        link.set_rate(None)


def start_peers(
    report: harness.Report, link: Link, child: Callable[..., Any], stack: ExitStack, workload: str
) -> dict[str, Callable[[int], float]]:
    """Start the peers; returns functions that make so many steps, and return the mean seconds of one.

    Args:
        report: Notes of it name the peers that cannot be started.
        link: Link between the two ends.
        child: Class of a process that answers lines of JSON (`bench_schedule.Child`).
        stack: Ends the processes.
        workload: Name of the workload, see `make_workload`.
    """
    asks: dict[str, Callable[[int], float]] = {}
    for name, start in (("tensorflow", _tensorflow), ("torchrec", _torchrec)):
        try:
            found = start(link, child, stack, workload)
            for ask in found.values():
                ask(1)
            asks |= found
        except (OSError, SystemExit) as error:
            report.notes[f"peer {name}"] = f"could not be started: {error}"
    return asks


def _environment(end: int) -> dict[str, str]:
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONWARNINGS": "ignore",
        "GLOO_SOCKET_IFNAME": DEVICES[end],
    }


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _hosts(link: Link) -> tuple[str, str]:
    return HOSTS if link.is_real else ("127.0.0.1", "127.0.0.1")


def _tensorflow(
    link: Link, child: Callable[..., Any], stack: ExitStack, workload: str
) -> dict[str, Callable[[int], float]]:
    here, there = _hosts(link)
    cluster = {"chief": [f"{here}:{_port()}"], "worker": [f"{here}:{_port()}"], "ps": [f"{there}:{_port()}"]}
    made = []
    for role, end in (("ps", 1), ("worker", 0), ("chief", 0)):
        arguments = [role, json.dumps(cluster), str(link.core(end)), workload]
        command = link.command(end, [str(PYTHON), "-m", "schedule.peer_tensorflow", *arguments], pinned=False)
        made.append(child(command, _environment(end)))
        stack.callback(made[-1].close)
        if role != "chief":
            made[-1].line()
    return {"tensorflow ParameterServerStrategy": lambda steps: float(made[-1].ask({"steps": steps})["step_s"])}


def _torchrec(
    link: Link, child: Callable[..., Any], stack: ExitStack, workload: str
) -> dict[str, Callable[[int], float]]:
    address = f"{_hosts(link)[0]}:{_port()}"
    ranks = []
    for rank in (0, 1):
        environment = _environment(rank)
        if not link.is_real:
            environment.pop("GLOO_SOCKET_IFNAME")
        command = link.command(rank, [str(PYTHON), "-m", "schedule.peer_torchrec", str(rank), address, workload])
        ranks.append(child(command, environment))
        stack.callback(ranks[-1].close)
    stack.callback(lambda: ranks[0].tell({"arm": "end"}))
    return {
        f"torchrec {name}": lambda steps, arm=arm: float(  # type: ignore[misc]
            ranks[0].ask({"arm": arm, "steps": steps})["step_s"]
        )
        for arm, name in (("plain", "DistributedModelParallel"), ("pipeline", "TrainPipelineSparseDist"))
    }
