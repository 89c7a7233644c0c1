"""Tuning policies in the *simulator*, on InTune's pipeline and machine (arXiv 2308.08500): 32-64-128-64-32 CPUs.

The clock is virtual, so phases of 5 minutes take seconds. Every policy runs on pipelines of 3 to 7 stages, one without
a user function, and ones with a heavy tail, drift, contention, blocking reads and bursty memory. Elements delivered are
reported as a share of the oracle's, which knows the true service times and tries settings; `bound` is what the CPUs
allow if no worker is ever idle. A relaunch of an adaptive baseline, or running out of memory, costs a tenth of a phase.
Cases with constant service times are the same for every seed; agents have 5 seeds in every case, and all policies do in
the case with the heavy tail.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import Any

import harness
import tuning_arms as arms

from headrace.simulation import (
    LATENCY_SPLIT,
    Distribution,
    Machine,
    PipelineSpec,
    published_machine,
    published_pipeline,
)
from headrace.tuning.policies.oracle import best_setting, true_rates
from headrace.tuning.rates import fluid_rate
from headrace.tuning.trial import Trial, recovery_times, run_trial

__all__ = ["run"]

SHARE = "share of the oracle"
TO_95, WORST_95 = "recovery, median", "recovery, worst"
SECONDS, PHASE_S, TICK_S, SEEDS = 2.0, 300.0, 1.0, 5


def cases(seconds: float, schedule_s: float) -> dict[str, PipelineSpec]:
    """Return the pipelines by case; the first is the published one."""
    return {
        "published": published_pipeline(seconds),
        **arms.hard_cases(seconds, schedule_s),
        "contention": published_pipeline(seconds, **{name: {"contention": 0.01} for name in LATENCY_SPLIT}),
        "no user function": arms.without_user_function(seconds),
        **arms.length_cases(seconds),
    }


def run(report: harness.Report, quick: bool) -> None:
    """Measure every policy on every pipeline, two at a time."""
    phase_s, seconds = (60.0, SECONDS) if quick else (PHASE_S, SECONDS)
    specs = cases(seconds, 5 * phase_s)
    if quick:
        specs = {name: specs[name] for name in ("published", "blocking reads")}
    seeds = 1 if quick else SEEDS
    trials = arms.fork_all(
        {
            (case, name): functools.partial(run_seeds, name, spec, phase_s, seeds)
            for case, spec in specs.items()
            for name in names_of(spec, quick)
        },
        at_once=2,
    )
    for case, spec in specs.items():
        add(report, case, spec, phase_s, {name: trials[case, name] for name in names_of(spec, quick)})
    run_memory(report, quick)


def names_of(spec: PipelineSpec, quick: bool) -> list[str]:
    """Return the policies of a case; agents with joint actions only for 5 stages (3125 combinations)."""
    if quick:
        return [arms.OURS, "even", "autotune", "autotune_adaptive", "intune", "oracle"]
    agents = [name for name, arm in arms.intune_arms().items() if arm["heads"] == "factored" or len(spec.stages) == 5]
    return [arms.OURS, *arms.BASELINES, *agents, "oracle"]


def run_seeds(name: str, spec: PipelineSpec, phase_s: float, seeds: int) -> list[Trial]:
    """Run a policy with every seed, or once if nothing is random."""
    random = name.startswith("intune") or any(each.distribution is not Distribution.CONSTANT for each in spec.stages)
    return [trial(name, spec, phase_s, seed) for seed in range(seeds if random else 1)]


def trial(name: str, spec: PipelineSpec, phase_s: float, seed: int) -> Trial:
    """Run a policy once over the schedule."""
    return run_trial(
        lambda: arms.make(name, spec, seed, phase_s=phase_s),
        spec,
        published_machine(phase_s),
        duration_s=5 * phase_s,
        tick_s=TICK_S,
        restart_s=arms.RESTART_SHARE * phase_s,
        seed=seed,
    )


def add(report: harness.Report, case: str, spec: PipelineSpec, phase_s: float, trials: dict[str, list[Trial]]) -> None:
    """Report the shares of the oracle and the recovery of all policies, and the goals."""
    machine = published_machine(phase_s)
    best = [best_setting(spec, p.cpus, p.start_s)[1] for p in machine.phases]
    oracle = statistics.median(each.delivered for each in trials["oracle"])
    for name, runs in trials.items():
        report.add(f"simulated, {case}", name, SHARE, "", [each.delivered / oracle for each in runs])
        times = [phase_s if t is None else t for each in runs for t in recovery_times(each, machine, best)[1:]]
        report.add(f"simulated, {case}", name, TO_95, "s", [statistics.median(times)])
        report.add(f"simulated, {case}", name, WORST_95, "s", [max(times)])
    report.compare(f"simulated, {case}", arms.OURS, SHARE)
    add_goals(report, f"simulated, {case}")
    if case == "published":
        bound = phase_s * sum(fluid_rate(true_rates(spec), p.cpus) for p in machine.phases)
        report.limit(f"simulated, {case}", "bound", bound, "elements", reached=trials[arms.OURS][0].delivered)


def add_goals(report: harness.Report, case: str) -> None:
    """Add the goals: `auto` near the oracle and soon after each resize; InTune's agent ahead of simpler policies."""
    share, worst = (report.median(case, arms.OURS, metric) for metric in (SHARE, WORST_95))
    report.goal(f"{case}: share of the oracle", "0.97", f"{share:.3f}", met=share >= 0.97)
    report.goal(f"{case}: at 95 % of the oracle after a resize", "5 s", f"{worst:.1f} s", met=worst <= 5)
    learnt = report.median(case, "intune", SHARE)
    for other in ("even", "autotune"):
        value = learnt / report.median(case, other, SHARE)
        report.goal(f"{case}: intune over {other}", "> 1x", f"{value:.2f}x", met=value > 1)


def run_memory(report: harness.Report, quick: bool) -> None:
    """Measure how often each policy runs out of memory, with bursty elements and a tight memory limit.

    Policies are compared without a ledger. A further arm is `auto` with the engine's ledger, which admits work by its
    bytes.
    """
    case, seeds = "simulated, bursty memory", 3 if quick else 50
    bursty: dict[str, Any] = {"output_bytes": 10e6, "bytes_distribution": Distribution.LOGNORMAL, "bytes_spread": 1.0}
    base = published_pipeline(1.0, **dict.fromkeys(LATENCY_SPLIT, bursty))
    spec = PipelineSpec(stages=base.stages, base_bytes=200e6, consumer_s=0.025)
    machine = Machine.fixed(64, memory_bytes=1.2e9)
    named = {name: (name, spec) for name in names_of(spec, quick) if "joint" not in name and name != "intune_published"}
    named["auto and the engine's ledger"] = (arms.OURS, spec.with_ledger(0.5e9))

    def all_runs(name: str, pipeline: PipelineSpec) -> list[Trial]:
        make: Callable[[int], Any] = lambda seed: arms.make(name, spec, seed)  # noqa: E731
        run = functools.partial(run_trial, spec=pipeline, machine=machine, duration_s=60, restart_s=30.0)
        return [run(functools.partial(make, seed), seed=seed) for seed in range(seeds)]

    runs = arms.fork_all({arm: functools.partial(all_runs, *what) for arm, what in named.items()}, at_once=2)
    for arm, trials in runs.items():
        failed = statistics.mean(each.num_failures > 0 for each in trials)
        report.add(case, arm, "runs that ran out of memory", "", [failed])
        report.add(case, arm, "elements", "", [each.delivered for each in trials])
