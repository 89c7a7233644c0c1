"""Tuning policies on InTune's published pipeline and machine (arXiv 2308.08500): 32-64-128-64-32 CPUs.

Two modes, never mixed in one table:

- *simulated*: the pipeline on a virtual clock; every policy, pipelines of 3 to 7 stages, without a user function,
  with a heavy tail, drift, contention, blocking reads and bursty memory.
- *emulated* (`--mode emulated`): the real engine, where a stage holds one of C virtual CPUs while it sleeps.

Elements delivered are given as a share of the oracle, which knows the true service times; `bound` is what the CPUs
allow if no worker ever idles. The adaptive baselines pay `RESTART_S` for each relaunch, and everyone for each
out-of-memory failure.
"""

from __future__ import annotations

import harness

harness.single_threaded()

import functools  # noqa: E402
import statistics  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402

from headrace.simulation import (  # noqa: E402
    LATENCY_SPLIT,
    Distribution,
    Drift,
    Machine,
    PipelineSpec,
    StageSpec,
    published_machine,
    published_pipeline,
)
from headrace.tuning import POLICIES, Policy, recovery_times, run_trial  # noqa: E402
from headrace.tuning.emulation import EmulatedCpus, EmulatedJob, emulated_pipeline, open_emulated  # noqa: E402
from headrace.tuning.episodes import latency_split  # noqa: E402
from headrace.tuning.guard import Guard  # noqa: E402
from headrace.tuning.policies import Oracle  # noqa: E402
from headrace.tuning.policies.oracle import best_setting, true_rates  # noqa: E402
from headrace.tuning.rates import fluid_rate  # noqa: E402

OURS = "auto"
RESTART_S = 30.0
"""Checkpoint, stop, start and fill again; InTune gives no number."""
SHARE = "share of the oracle"
TO_95 = "seconds from a resize to 95 % of the oracle (median)"
WORST_95 = "seconds from a resize to 95 % of the oracle (worst)"


def simulated_cases(quick: bool) -> dict[str, PipelineSpec]:
    """Pipelines by name; the first is the published one."""
    seconds = 4.0 if quick else 1.0
    cases = {
        "published": published_pipeline(seconds),
        "heavy tail": published_pipeline(seconds, map={"distribution": Distribution.PARETO, "spread": 1.6}),
        "drift": published_pipeline(seconds, map={"drift": Drift(factor=2.5, start_s=375, end_s=375)}),
        "contention": published_pipeline(seconds, **{name: {"contention": 0.01} for name in LATENCY_SPLIT}),
        "blocking reads": published_pipeline(seconds, load={"io_s": 2.0 * seconds}),
    }
    if not quick:
        plain = dict(zip("abcd", (0.14, 0.28, 0.117, 0.04), strict=True))
        cases["no user function"] = PipelineSpec(
            stages=tuple(StageSpec(name=name, cpu_s=share * seconds) for name, share in plain.items())
        )
        for length in (3, 4, 6, 7):
            split = latency_split(length)
            cases[f"{length} stages"] = PipelineSpec(
                stages=tuple(StageSpec(name=f"stage{i}", cpu_s=share * seconds) for i, share in enumerate(split))
            )
    return cases


def policies(spec: PipelineSpec) -> dict[str, Callable[[], Policy]]:
    """Every policy, and the oracle for this pipeline."""
    return {**POLICIES, "oracle": lambda: Oracle(spec)}


def simulate(report: harness.Report, quick: bool) -> None:
    """Every policy on every pipeline, 5 seeds each."""
    phase_s, seeds, tick_s = (150.0, 1, 1.0) if quick else (300.0, 5, 0.5)
    machine = published_machine(phase_s)
    for case, spec in simulated_cases(quick).items():
        best = [best_setting(spec, p.cpus, p.start_s)[1] for p in machine.phases]
        run = functools.partial(
            run_trial, spec=spec, machine=machine, duration_s=5 * phase_s, tick_s=tick_s, restart_s=RESTART_S
        )
        oracle = statistics.median(run(lambda s=spec: Oracle(s), seed=seed).delivered for seed in range(seeds))
        for name, make in policies(spec).items():
            trials = [run(make, seed=seed) for seed in range(seeds)]
            report.add(f"simulated, {case}", name, SHARE, "", [trial.delivered / oracle for trial in trials])
            report_recovery(
                report, f"simulated, {case}", name, [recovery_times(t, machine, best) for t in trials], phase_s
            )
        report.compare(f"simulated, {case}", OURS, SHARE)
        if case == "published":
            bound = phase_s * sum(fluid_rate(true_rates(spec), p.cpus) for p in machine.phases)
            report.limit(f"simulated, {case}", "bound", bound, "elements", reached=oracle)


def report_recovery(
    report: harness.Report, case: str, name: str, times: list[list[float | None]], phase_s: float
) -> None:
    """Seconds to 95 %, without the first phase, which is no resize; the whole phase where it was never reached."""
    resizes = [phase_s if each is None else each for run in times for each in run[1:]]
    report.add(case, name, TO_95, "s", resizes)
    report.add(case, name, WORST_95, "s", [max(resizes)])


def simulate_memory(report: harness.Report, quick: bool) -> None:
    """Bursty elements on a machine whose memory a careless setting exceeds: failures by policy.

    Policies are compared without a ledger; the engine's own, which admits work by its bytes, is an arm of its own.
    """
    case, runs = "simulated, bursty memory", 3 if quick else 50
    bursty = {"output_bytes": 10e6, "bytes_distribution": Distribution.LOGNORMAL, "bytes_spread": 1.0}
    base = published_pipeline(1.0, **dict.fromkeys(LATENCY_SPLIT, bursty))
    spec = PipelineSpec(stages=base.stages, base_bytes=200e6, consumer_s=0.025)
    machine = Machine.fixed(64, memory_bytes=1.2e9)
    arms = {name: (make, spec) for name, make in policies(spec).items()}
    arms["auto and the engine's ledger"] = (POLICIES[OURS], spec.with_ledger(0.5e9))
    for name, (make, pipeline) in arms.items():
        run = functools.partial(run_trial, make, pipeline, machine, duration_s=60, restart_s=RESTART_S)
        trials = [run(seed=seed) for seed in range(runs)]
        failed = statistics.mean(trial.num_failures > 0 for trial in trials)
        report.add(case, name, "runs that ran out of memory", "", [failed])
        report.add(case, name, "elements", "", [trial.delivered for trial in trials])


def emulate(report: harness.Report, quick: bool) -> None:
    """The real engine on virtual CPUs."""
    cpus, phase_s, seconds = ((8, 16, 32, 16, 8), 2.5, 0.2) if quick else ((32, 64, 128, 64, 32), 20.0, 0.5)
    spec = published_pipeline(seconds)
    names = [OURS, "one_per_stage", "autotune"] if quick else [*POLICIES, "oracle"]
    best = [fluid_rate(true_rates(spec), each) for each in cpus]
    case = f"emulated, published, {'-'.join(map(str, cpus))}"
    delivered = {}
    for name in names:
        per_tick, tick_s = run_emulated(policies(spec)[name], spec, cpus, phase_s, guarded=name == OURS)
        delivered[name] = sum(per_tick)
        times = recovery_in(per_tick, tick_s, phase_s, best)
        report.add(case, name, "share of the bound", "", [sum(per_tick) / (phase_s * sum(best))])
        report_recovery(report, case, name, [times], phase_s)
    for name in names:
        report.add(case, name, "elements over one per stage", "", [delivered[name] / delivered["one_per_stage"]])
    report.compare(case, OURS, "share of the bound")


def run_emulated(
    make: Callable[[], Policy], spec: PipelineSpec, counts: tuple[int, ...], phase_s: float, *, guarded: bool
) -> tuple[list[int], float]:
    """Elements in each tick of half a second (a quarter where phases are short)."""
    tick_s = 0.5 if phase_s >= 10 else 0.25
    cpus = EmulatedCpus(counts[0])
    pipeline = emulated_pipeline(spec, cpus, 1_000_000)
    per_tick = [0] * round(phase_s * len(counts) / tick_s)
    began = time.monotonic()
    policy, batches = make(), open_emulated(pipeline)
    try:
        job = EmulatedJob(batches, cpus, spec)
        guard = Guard(job.space)
        job.apply(policy.start(job.space, job.observe()).values)
        looked = began
        while (now := time.monotonic()) - began < phase_s * len(counts):
            cpus.resize(counts[int((now - began) / phase_s)])
            next(batches)
            tick = int((time.monotonic() - began) / tick_s)
            if tick < len(per_tick):
                per_tick[tick] += 1
            if time.monotonic() - looked < 2 * tick_s:
                continue
            looked = time.monotonic()
            seen = job.observe()
            proposal = policy.decide(seen)
            if guarded:
                proposal = guard.check(seen, proposal)
            if proposal.relaunch:
                state = batches.state_dict()
                batches.close()
                time.sleep(phase_s * RESTART_S / 300.0)  # the same share of a phase as in the simulation
                batches = open_emulated(pipeline, state)
                job = EmulatedJob(batches, cpus, spec)
            job.apply(proposal.values)
    finally:
        batches.close()
    return per_tick, tick_s


def recovery_in(per_tick: list[int], tick_s: float, phase_s: float, best: list[float]) -> list[float | None]:
    """As `recovery_times`, over four ticks: the engine's deliveries come in small bursts."""
    num_ticks, times = round(phase_s / tick_s), []
    for phase, rate in enumerate(best):
        ticks = per_tick[phase * num_ticks : (phase + 1) * num_ticks]
        hits = (i for i in range(len(ticks) - 3) if sum(ticks[i : i + 4]) >= 0.95 * rate * 4 * tick_s)
        found = next(hits, None)
        times.append(None if found is None else (found + 1) * tick_s)
    return times


def main() -> None:
    """Run the modes asked for."""
    options = harness.options("bench_tuning", __doc__, mode="both")
    report = harness.Report("bench_tuning")
    if options.mode in ("both", "simulated"):
        simulate(report, options.quick)
        simulate_memory(report, options.quick)
    if options.mode in ("both", "emulated"):
        emulate(report, options.quick)
    report.finish(options)


if __name__ == "__main__":
    main()
