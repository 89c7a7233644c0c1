"""Shared by the modes of `bench_tuning.py`: pipelines and policies by name, and arms in separate processes."""

from __future__ import annotations

import functools
import multiprocessing.connection
import os
import sys
import time
import traceback
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Literal, TypeVar

from headrace.registry import TUNERS
from headrace.simulation import LATENCY_SPLIT, Distribution, Drift, PipelineSpec, StageSpec, published_pipeline
from headrace.tuning.episodes import latency_split
from headrace.tuning.policies import Autotune, Oracle, Plumber, Policy, Relaunched
from headrace.tuning.policies.intune import InTune

__all__ = [
    "BASELINES",
    "OURS",
    "RESTART_SHARE",
    "fork_all",
    "hard_cases",
    "intune_arms",
    "length_cases",
    "make",
    "without_user_function",
]

K = TypeVar("K", bound=Hashable)

OURS = "auto"
SHOW_EVERY_S = 2.0
BASELINES = (
    "one_per_stage", "even", "autotune", "autotune_hill_climb", "autotune_adaptive", "plumber", "plumber_adaptive",
)  # fmt: skip
RESTART_SHARE = 0.1
"""Share of a phase that is lost by a failure, or by a relaunch (checkpoint, stop, start, fill the pipeline again).

The InTune paper gives no number."""


def make(name: str, spec: PipelineSpec, seed: int = 0, *, phase_s: float = 300.0) -> Policy:
    """Create the policy with this name.

    The durations built into some policies (a minute of tracing, a minute between optimizations) suit phases of five
    minutes. They are scaled down with `phase_s`, so that short phases do not put these policies at a disadvantage.

    Args:
        name: A registered tuner, an agent of `intune_arms`, or "oracle".
        spec: The pipeline to tune, which only the oracle knows.
        seed: Seed of an agent.
        phase_s: Seconds between two resizes of the machine.
    """
    agents, scale = intune_arms(), min(phase_s / 300.0, 1.0)
    plumber = functools.partial(Plumber, 60.0 * scale, max(10, round(100 * scale)))
    autotune = functools.partial(Autotune, max_period_s=60.0 * scale)
    scaled: dict[str, Callable[[], Policy]] = {
        "plumber": plumber,
        "plumber_adaptive": lambda: Relaunched(plumber),
        "autotune": autotune,
        "autotune_hill_climb": lambda: autotune("hill_climb"),
        "autotune_adaptive": lambda: Relaunched(autotune),
    }
    if name in agents:
        return InTune(**agents[name], seed=seed)
    return (scaled | {"oracle": lambda: Oracle(spec)}).get(name, TUNERS.get(name))()  # type: ignore[misc]


def intune_arms() -> dict[str, dict[str, Any]]:
    """Return settings of InTune's agent by arm: with or without headrace's counters, factored or joint actions."""

    def arm(view: Literal["published", "stages"], heads: Literal["joint", "factored"]) -> dict[str, Any]:
        return {"view": view, "heads": heads}

    return {
        "intune": arm("stages", "factored"),
        "intune, joint": arm("stages", "joint"),
        "intune_published": arm("published", "joint"),
        "intune_published, factored": arm("published", "factored"),
    }


def length_cases(seconds: float) -> dict[str, PipelineSpec]:
    """Return pipelines of 3, 4, 6 and 7 stages; the published one has 5."""
    return {
        f"{length} stages": PipelineSpec(
            stages=tuple(StageSpec(name=f"stage{i}", cpu_s=s * seconds) for i, s in enumerate(latency_split(length)))
        )
        for length in (3, 4, 6, 7)
    }


def without_user_function(seconds: float) -> PipelineSpec:
    """Return the published pipeline without its user function."""
    plain = {name: share for name, share in LATENCY_SPLIT.items() if name != "map"}
    return PipelineSpec(stages=tuple(StageSpec(name=name, cpu_s=share * seconds) for name, share in plain.items()))


def hard_cases(seconds: float, schedule_s: float) -> dict[str, PipelineSpec]:
    """Return pipelines that a fixed split of the CPUs cannot serve well.

    They have a heavy-tailed user function, service times that drift in the middle of the schedule, or blocking reads.
    """
    middle = schedule_s / 2
    return {
        "heavy-tailed user function": published_pipeline(
            seconds, map={"distribution": Distribution.PARETO, "spread": 1.6}
        ),
        "drift in mid-run": published_pipeline(seconds, map={"drift": Drift(factor=2.5, start_s=middle, end_s=middle)}),
        "blocking reads": published_pipeline(seconds, load={"io_s": 2.0 * seconds}),
    }


def fork_all(arms: Mapping[K, Callable[[], Any]], *, at_once: int, timeout_s: float = 600.0) -> dict[K, Any]:
    """Run arms in forked processes, several at a time, and return their results by arm.

    A forked process need not import anything, and anything that an arm leaves behind ends with its process. The parent
    must not have threads.

    Args:
        arms: Functions without arguments by arm.
        at_once: Maximum number of arms that run at the same time.
        timeout_s: Maximum seconds during which no arm finishes.

    Raises:
        RuntimeError: An arm raised an exception (the message contains its traceback), was killed, or timed out.
    """
    context, results = multiprocessing.get_context("fork"), {}
    waiting, running = list(arms.items()), {}
    began = shown = time.monotonic()
    while waiting or running:
        while waiting and len(running) < at_once:
            name, run = waiting.pop(0)
            receiver, sender = context.Pipe(duplex=False)
            child = context.Process(target=_child, args=(run, sender))
            child.start()
            sender.close()
            running[name] = child, receiver
        done = multiprocessing.connection.wait([receiver for _, receiver in running.values()], timeout_s)
        for name in [name for name, (_, receiver) in running.items() if receiver in done]:
            child, receiver = running.pop(name)
            try:
                ok, value = receiver.recv()
            except EOFError:
                ok, value = False, "the process was killed"
            child.join()
            receiver.close()
            if not ok:
                raise RuntimeError(f"arm {name}: {value}")
            results[name] = value
            if time.monotonic() - shown > SHOW_EVERY_S:
                shown = time.monotonic()
                print(f"{len(results)} of {len(arms)} arms after {shown - began:.0f} s", file=sys.stderr, flush=True)
        if not done:
            raise RuntimeError(f"arms {', '.join(map(str, running))}: no answer within {timeout_s:.0f} s")
    return {name: results[name] for name in arms}


def _child(run: Callable[[], Any], sender: Any) -> None:
    try:
        sender.send((True, run()))
    except BaseException:
        sender.send((False, traceback.format_exc()))
    finally:
        sender.close()
        os._exit(0)
