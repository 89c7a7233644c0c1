"""`run_trial`: runs one policy on one simulated job on a changing machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from headrace.simulation import Machine, PipelineSpec
from headrace.tuning.job import SimulatedJob
from headrace.tuning.policies.base import Policy, Proposal

__all__ = ["Trial", "recovery_times", "run_trial"]


@dataclass(frozen=True)
class Trial:
    """The result of a trial.

    Attributes:
        delivered: Total elements delivered.
        per_tick: Elements delivered in each tick.
        tick_s: Seconds per tick.
        num_failures: How often the job ran out of memory.
        proposals: (seconds, proposal) of the policy, starting with its first setting.
    """

    delivered: int
    per_tick: tuple[int, ...]
    tick_s: float
    num_failures: int
    proposals: tuple[tuple[float, Proposal], ...]


def run_trial(
    make: Callable[[], Policy],
    spec: PipelineSpec,
    machine: Machine,
    *,
    duration_s: float,
    tick_s: float = 0.5,
    seed: int = 0,
    restart_s: float = 30.0,
) -> Trial:
    """Run a policy without a guard, applying everything it proposes.

    Args:
        make: Creates the policy.
        spec: The pipeline.
        machine: CPUs and memory over time.
        duration_s: Virtual seconds.
        tick_s: Seconds between decisions.
        seed: Seed of service times and sizes.
        restart_s: Seconds lost by a relaunch or by running out of memory.
    """
    policy, job = make(), SimulatedJob(spec, machine, seed=seed, restart_s=restart_s)
    proposal = policy.start(job.space, job.observe())
    proposals, per_tick = [(0.0, proposal)], []
    job.apply(proposal.values)
    for _ in range(round(duration_s / tick_s)):
        per_tick.append(job.run(tick_s))
        observation = job.observe()
        proposal = policy.decide(observation)
        proposals.append((observation.time_s, proposal))
        job.apply(proposal.values)
        if proposal.relaunch:
            job.relaunch()
    return Trial(sum(per_tick), tuple(per_tick), tick_s, job.num_failures, tuple(proposals))


def recovery_times(
    trial: Trial, machine: Machine, best_rates: list[float], *, share: float = 0.95
) -> list[float | None]:
    """Seconds from each change of the machine until the rate reaches a share of the phase's best for three ticks.

    Args:
        trial: The trial.
        machine: The machine it ran on.
        best_rates: The oracle's rate in each phase.
        share: Required share of the oracle's rate.

    Returns:
        For each phase, the end of the first of three consecutive ticks that reach it on average, or None.
    """
    starts = [phase.start_s for phase in machine.phases]
    ends = [*starts[1:], len(trial.per_tick) * trial.tick_s]
    times: list[float | None] = []
    for start, end, best in zip(starts, ends, best_rates, strict=True):
        ticks = trial.per_tick[round(start / trial.tick_s) : round(end / trial.tick_s)]
        found = None
        for i in range(len(ticks) - 2):
            if sum(ticks[i : i + 3]) >= share * best * 3 * trial.tick_s:
                found = (i + 1) * trial.tick_s
                break
        times.append(found)
    return times
