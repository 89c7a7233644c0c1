"""Tuning policies on the real engine with *emulated* CPUs, on InTune's pipeline and machine (arXiv 2308.08500).

A stage sleeps for its service time (5 ms and more) while holding one of C virtual CPUs; threads, queues, order and
counters are those of the engine. The number of CPUs is 32-64-128-64-32, as published, and so are the latency shares:
load 14 %, batch 28 %, shuffle 11.7 %, user function 42.3 %, prefetch 4 %. Variants have half of the CPUs and the same
shares. Arms mostly sleep, so several of them run in parallel, each in its own process, but only as many as the real
cores can wake up in time: with 9 arms at 128 CPUs on 2 cores, even the oracle delivered only 69 % of what its virtual
CPUs allow; with 4 arms, 97 %. This share is printed with each case.

- `x one_per_stage`: batches delivered, relative to one worker per stage.
- `share of the oracle`: batches delivered, relative to the best setting for each phase, found with the true service
  times.
- recovery: seconds from a resize until four consecutive ticks reach 95 % of the oracle's rate in that phase; the whole
  phase if that never happens.

The adaptive baselines are relaunched at each resize, which costs a tenth of a phase.
"""

from __future__ import annotations

import functools
import os
import statistics
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import harness
import tuning_arms as arms

from headrace.pipeline import BatchIterator
from headrace.simulation import PipelineSpec, published_pipeline
from headrace.tuning.emulation import EmulatedCpus, EmulatedJob, emulated_pipeline, open_emulated
from headrace.tuning.guard import Guard
from headrace.tuning.policies.oracle import best_setting
from headrace.tuning.space import THREADS

__all__ = ["run"]

SHARE, OVER_ONE = "share of the oracle", "x one_per_stage"
TO_95, WORST_95 = "recovery, median", "recovery, worst"
SEEDS = {"intune": 5, "intune_published": 2}
"""Seeds of the agents: with headrace's counters (a goal depends on it), and with the six published factors alone."""
VARIANT_ARMS = (
    arms.OURS, "one_per_stage", "even", "autotune", "autotune_adaptive", "plumber_adaptive", "intune", "oracle",
)  # fmt: skip
HARD_ARMS = (arms.OURS, "one_per_stage", "autotune_adaptive", "oracle")


@dataclass(frozen=True)
class Schedule:
    """Number of CPUs over time, and how often the policy decides.

    Attributes:
        cpus: Number of CPUs in each phase.
        phase_s: Seconds per phase.
        window_s: Seconds between two decisions of the policy.
        tick_s: Seconds per tick, for which deliveries are counted.
    """

    cpus: tuple[int, ...]
    phase_s: float
    window_s: float
    tick_s: float

    @property
    def seconds(self) -> float:
        """Seconds of all phases together."""
        return self.phase_s * len(self.cpus)


FULL = Schedule((32, 64, 128, 64, 32), 12.0, 1.0, 0.5)
VARIANT = Schedule((16, 32, 64, 32, 16), 6.0, 1.0, 0.5)
HARD = Schedule((16, 32, 64, 32, 16), 12.0, 1.0, 0.5)
FAST_ENOUGH = 0.9
"""If the oracle reaches less than this share of what its virtual CPUs allow, a case is shown without goals."""
RATE_PER_CORE = 128.0
"""Maximum elements per second and real core, over all arms that run in parallel."""
QUICK = Schedule((8, 16, 32, 16, 8), 1.5, 0.25, 0.25)


def run(report: harness.Report, quick: bool) -> None:
    """Measure the published case with every policy, and then the variants with some of them."""
    use = harness.CpuUse()
    if quick:
        names = [arms.OURS, "one_per_stage", "even", "autotune", "autotune_adaptive", "intune", "oracle"]
        measure(report, {"emulated, published": (published_pipeline(0.4), names)}, QUICK)
    else:
        measure_published(report)
        for case, spec in variants(1.0).items():
            measure(report, {case: (spec, list(VARIANT_ARMS))}, VARIANT)
        hard = arms.hard_cases(0.5, HARD.seconds)
        measure(report, {f"emulated, {case}": (spec, list(HARD_ARMS)) for case, spec in hard.items()}, HARD)
    report.notes["cpus used by the emulated runs"], report.notes["cpus used by others meanwhile"] = use.elapsed()


def variants(seconds: float) -> dict[str, PipelineSpec]:
    """Return other pipelines by case, for the same kind of machine."""
    batches = {
        f"batches {word} as large": published_pipeline(f * seconds) for word, f in (("half", 0.5), ("twice", 2.0))
    }
    cases = {
        **arms.length_cases(seconds),
        "no user function": arms.without_user_function(seconds),
        **batches,
    }
    return {f"emulated, {name}": spec for name, spec in cases.items()}


def measure(report: harness.Report, cases: dict[str, tuple[PipelineSpec, list[str]]], schedule: Schedule) -> None:
    """Measure all arms of these cases, several at a time, and add them to the report."""
    runs = {
        (case, name): functools.partial(run_arm, name, spec, schedule)
        for case, (spec, names) in cases.items()
        for name in names
    }
    for spec, _ in cases.values():
        precompute_oracle(spec, schedule)
    counted = arms.fork_all(
        runs, at_once=at_once([spec for spec, _ in cases.values()], schedule), timeout_s=2 * schedule.seconds + 60
    )
    for case, (spec, names) in cases.items():
        oracle = counted[case, "oracle"]
        is_valid = add_limit(report, case, spec, oracle, schedule)
        for name in names:
            add(report, case, name, [counted[case, name]], [oracle], schedule)
            one = sum(counted[case, "one_per_stage"])
            report.add(case, name, OVER_ONE, "", [sum(counted[case, name]) / one])
        report.compare(case, arms.OURS, SHARE)
        if is_valid:
            add_goals(report, case)


def at_once(specs: Iterable[PipelineSpec], schedule: Schedule) -> int:
    """Return how many arms can run in parallel before the real cores wake up their sleeping stages too late."""
    rate = max(max(schedule.cpus) / sum(stage.cpu_s for stage in spec.stages) for spec in specs)
    return max(1, int(RATE_PER_CORE * len(os.sched_getaffinity(0)) / rate))


def add_limit(report: harness.Report, case: str, spec: PipelineSpec, oracle: Sequence[int], schedule: Schedule) -> bool:
    """Report what the virtual CPUs allow and the oracle's share of it; return whether the real cores kept up."""
    starts = [i * schedule.phase_s for i in range(len(schedule.cpus))]
    rates = [best_setting(spec, n, start)[1] for n, start in zip(schedule.cpus, starts, strict=True)]
    report.limit(
        case, "oracle in the simulator", sum(rates) / len(rates), "1/s", reached=sum(oracle) / schedule.seconds
    )
    share = report.limits[-1].share
    if share < FAST_ENOUGH:
        why = f"the oracle reached {share:.0%} of what its virtual CPUs allow, so the real cores were too slow"
        report.notes[f"{case}: not judged"] = why
    return share >= FAST_ENOUGH


def add_goals(report: harness.Report, case: str) -> None:
    """Add the goals of `auto`: its share of the oracle, and its recovery after a resize."""
    share, worst = (report.median(case, arms.OURS, metric) for metric in (SHARE, WORST_95))
    report.goal(f"{case}: share of the oracle", "0.97", f"{share:.3f}", met=share >= 0.97)
    report.goal(f"{case}: at 95 % of the oracle after a resize", "5 s", f"{worst:.1f} s", met=worst <= 5)


def measure_published(report: harness.Report) -> None:
    """Measure every policy on the published case; InTune's agents with several seeds each."""
    case, spec = "emulated, published", published_pipeline(1.0)
    precompute_oracle(spec, FULL)
    keys = [(name, 0) for name in (arms.OURS, *arms.BASELINES, "oracle")]
    keys += [(name, seed) for name, num_seeds in SEEDS.items() for seed in range(num_seeds)]
    runs = {(name, seed): functools.partial(run_arm, name, spec, FULL, seed) for name, seed in keys}
    counted = arms.fork_all(runs, at_once=at_once([spec], FULL), timeout_s=2 * FULL.seconds + 60)
    oracle, one = counted["oracle", 0], sum(counted["one_per_stage", 0])
    is_valid = add_limit(report, case, spec, oracle, FULL)
    for name in dict.fromkeys(name for name, _ in counted):
        mine = [ticks for (each, _), ticks in counted.items() if each == name]
        add(report, case, name, mine, [oracle] * len(mine), FULL)
        report.add(case, name, OVER_ONE, "", [sum(ticks) / one for ticks in mine])
    report.compare(case, arms.OURS, SHARE)
    if is_valid:
        add_goals(report, case)
        add_learner_goals(report, case)


def add_learner_goals(report: harness.Report, case: str) -> None:
    """Add the goals of InTune's agent with headrace's counters: to beat the policies that do not learn."""
    learnt = report.median(case, "intune", SHARE)
    for other in ("even", "autotune"):
        value = learnt / report.median(case, other, SHARE)
        report.goal(f"{case}: intune over {other}", "> 1x", f"{value:.2f}x", met=value > 1)


def precompute_oracle(spec: PipelineSpec, schedule: Schedule) -> None:
    """Compute the oracle's settings now: they are cached, and arms are forks of this process, so they find them."""
    for cpus in sorted(set(schedule.cpus)):
        for moment in (0.0, schedule.seconds):
            best_setting(spec, cpus, moment)


def add(
    report: harness.Report, case: str, name: str, runs: list[list[int]], oracles: list[list[int]], schedule: Schedule
) -> None:
    """Report the share of the oracle, and the recovery after each resize."""
    report.add(case, name, SHARE, "", [sum(mine) / sum(best) for mine, best in zip(runs, oracles, strict=True)])
    times = [
        seconds
        for mine, best in zip(runs, oracles, strict=True)
        for seconds in recovery(mine, phase_rates(best, schedule), schedule)[1:]
    ]
    report.add(case, name, TO_95, "s", [statistics.median(times)])
    report.add(case, name, WORST_95, "s", [max(times)])


def phase_rates(per_tick: Sequence[int], schedule: Schedule) -> list[float]:
    """Return the oracle's rate in each phase, without the first two fifths of the phase."""
    size = round(schedule.phase_s / schedule.tick_s)
    settled = [per_tick[i * size + size * 2 // 5 : (i + 1) * size] for i in range(len(schedule.cpus))]
    return [sum(ticks) / (len(ticks) * schedule.tick_s) for ticks in settled]


def recovery(per_tick: Sequence[int], rates: Sequence[float], schedule: Schedule) -> list[float]:
    """Return, for each phase, the seconds until four consecutive ticks reach 95 % of its rate on average.

    The end of the first of these ticks counts; a phase without them counts as a whole.
    """
    size, times = round(schedule.phase_s / schedule.tick_s), []
    for phase, rate in enumerate(rates):
        ticks = per_tick[phase * size : (phase + 1) * size]
        hits = (i for i in range(len(ticks) - 3) if sum(ticks[i : i + 4]) >= 0.95 * rate * 4 * schedule.tick_s)
        found = next(hits, None)
        times.append(schedule.phase_s if found is None else (found + 1) * schedule.tick_s)
    return times


class Consumer:
    """A thread that takes batches as fast as they are delivered, and counts them by tick."""

    def __init__(self, batches: BatchIterator, per_tick: list[int], began: float, tick_s: float) -> None:
        self._batches, self._per_tick, self._began, self._tick_s = batches, per_tick, began, tick_s
        self._stop = False
        self._thread = threading.Thread(target=self._consume, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread and close the batches."""
        self._stop = True
        self._batches.close()
        self._thread.join()

    def _consume(self) -> None:
        try:
            for _ in self._batches:
                tick = int((time.monotonic() - self._began) / self._tick_s)
                if self._stop or tick >= len(self._per_tick):
                    return
                self._per_tick[tick] += 1
        except Exception:
            if not self._stop:
                raise


def run_arm(name: str, spec: PipelineSpec, schedule: Schedule, seed: int = 0) -> list[int]:
    """Run one arm over the schedule and return the batches delivered in each tick; `auto` is guarded, as in use."""
    cpus = EmulatedCpus(schedule.cpus[0])
    pipeline = emulated_pipeline(spec, cpus, 1_000_000)
    per_tick = [0] * round(schedule.seconds / schedule.tick_s)
    policy, batches, began = (
        arms.make(name, spec, seed, phase_s=schedule.phase_s),
        launch(pipeline, None),
        time.monotonic(),
    )
    consumer = Consumer(batches, per_tick, began, schedule.tick_s)
    job = EmulatedJob(batches, cpus, spec)
    guard = Guard(job.space)
    job.apply(policy.start(job.space, job.observe()).values)
    for step in range(1, round(schedule.seconds / schedule.window_s)):
        time.sleep(max(0.0, began + step * schedule.window_s - time.monotonic()))
        cpus.resize(schedule.cpus[int(step * schedule.window_s / schedule.phase_s)])
        # A relaunched job counts its seconds from 0, but the policy's clock continues.
        seen = replace(job.observe(), time_s=time.monotonic() - began)
        if seen.window_s <= 0:
            continue
        proposal = policy.decide(seen)
        if name == arms.OURS:
            proposal = guard.check(seen, proposal)
        if proposal.relaunch:
            state = batches.state_dict()
            consumer.stop()
            time.sleep(arms.RESTART_SHARE * schedule.phase_s)
            batches = launch(pipeline, state)
            consumer, job = Consumer(batches, per_tick, began, schedule.tick_s), EmulatedJob(batches, cpus, spec)
        job.apply(proposal.values)
    time.sleep(max(0.0, began + schedule.seconds - time.monotonic()))
    consumer.stop()
    return per_tick


def launch(pipeline: object, state: object) -> BatchIterator:
    """Open the pipeline with the maximum of threads, because most policies set only the workers of stages."""
    batches = open_emulated(pipeline, state)  # type: ignore[arg-type]
    batches.tunables[THREADS].set(batches.tunables[THREADS].max)
    return batches
