"""`Auto`: headrace's own policy and the default.

It measures what each stage needs (CPU clock, blocking time, contention, visits; windowed), solves the allocation in
closed form, and solves anew at once when the machine is resized or a stage drifts. What the model cannot know, such as
elements held back behind a slow one, is found by small probes that are undone when they do not help. Memory is never
bet on: a setting whose elements might not fit is not proposed. Search, exploration and training are not needed,
because the counters show directly what a search would have to discover.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from headrace.tuning.estimating import Estimator
from headrace.tuning.observation import Observation
from headrace.tuning.policies.base import Proposal
from headrace.tuning.policies.even import even_split
from headrace.tuning.rates import StageRate, fluid_rate
from headrace.tuning.space import PREFETCH, THREADS, Space, workers_of

__all__ = ["Auto", "AutoConfig"]


@dataclass(frozen=True, kw_only=True)
class AutoConfig:
    """Constants of `Auto`; the defaults were measured over the simulated pipelines of `benchmarks/bench_tuning.py`.

    Attributes:
        headroom: Workers beyond what the closed form needs: CPUs are shared, so a worker too many costs memory only,
            one too few costs throughput.
        gain: A new solution is applied when it promises this share more, or the machine or a stage has changed.
        surplus: ... or when it needs this share fewer workers.
        shortfall: Probes begin when the measured rate is this share below the predicted one.
        probe: Factor on a stage's workers in a probe.
        max_extra: Most workers a stage is given by probes, relative to what the closed form needs.
        probe_windows: Windows a probe is given.
        memory_share: Of the memory limit, for all that is in use.
        burst: Size of an element to be ready for, relative to the largest recent mean.
        consumer_headroom: Rate aimed at above what the consumer takes, where it is the limit.
    """

    headroom: float = 0.25
    gain: float = 0.02
    surplus: float = 0.3
    shortfall: float = 0.03
    probe: float = 2.0
    max_extra: float = 16.0
    probe_windows: int = 3
    memory_share: float = 0.8
    burst: float = 2.0
    consumer_headroom: float = 0.15


@dataclass
class _Probe:
    """A change on trial: the headroom factors before it, and the rate they gave."""

    stage: str
    before: dict[str, float]
    rate: float
    windows_left: int


class Auto:
    """See the top of this file."""

    def __init__(self, config: AutoConfig | None = None) -> None:
        """Args: config: Constants; the defaults if None."""
        self._config = config or AutoConfig()

    def start(self, space: Space, observation: Observation) -> Proposal:
        """At least an even split, by which every stage gets measured."""
        self._space = space
        self._estimator = Estimator()
        self._cpus = observation.cpus
        self._memory = observation.memory_limit_bytes
        self._extra: dict[str, float] = {}
        self._probe: _Probe | None = None
        self._refused: set[str] = set()
        self._settling = 0
        self._solved = False
        self._rates_seen: list[float] = []
        threads = {THREADS: math.ceil(observation.cpus)} if THREADS in space else {}
        split = even_split(space, observation.cpus)
        # What is there already is kept if it is more: an engine whose stages share their workers needs no split.
        workers = {name: max(value, observation.values.get(name, 1)) for name, value in split.items()}
        values = space.clip({**workers, **threads})
        return Proposal(values, f"{observation.cpus:g} CPUs divided evenly, until the stages have been measured")

    def decide(self, observation: Observation) -> Proposal:
        """Solve if anything has changed, else probe or leave it."""
        drifted = self._estimator.add(observation)
        changed = self._changes(observation, drifted)
        if not self._estimator.complete:
            return Proposal(reason="nothing, because not every stage has been measured")
        target, limit = self._target(observation)
        values = self._setting(observation, target)
        if changed:
            self._probe = None
            self._refused.clear()
            self._rates_seen.clear()
            return self._propose(observation, values, f"{changed}: solved for {target:.4g} a second ({limit})")
        if not observation.delivered:
            return Proposal(reason="nothing, because a window without any delivery tells nothing about a setting")
        if self._settling > 0:
            self._settling -= 1
            return Proposal(reason="nothing, because the last change is settling")
        verdict = self._judge_probe(observation, target)
        if verdict is not None:
            return verdict
        proposal = self._improve(observation, values, target, limit)
        return proposal if proposal is not None else self._refine(observation, target)

    def _changes(self, observation: Observation, drifted: Sequence[str]) -> str:
        """What has happened that makes the present setting obsolete; empty if nothing."""
        reasons = []
        if observation.cpus != self._cpus:
            reasons.append(f"CPUs {self._cpus:g} -> {observation.cpus:g}")
        if observation.memory_limit_bytes != self._memory:
            reasons.append("memory limit changed")
        if drifted:
            reasons.append(f"{', '.join(drifted)} takes another time per element than before")
        if self._estimator.complete and not self._solved:
            reasons.append("all stages measured")
            self._solved = True
        self._cpus, self._memory = observation.cpus, observation.memory_limit_bytes
        return "; ".join(reasons)

    def _target(self, observation: Observation) -> tuple[float, str]:
        """Elements a second to aim at, and what limits them."""
        rates = self._estimator.rates(self._space)
        cpus = fluid_rate(rates, observation.cpus)
        consumer = observation.consumer_rate_per_s * (1.0 + self._config.consumer_headroom)
        if consumer < cpus:
            return consumer, "the consumer takes no more"
        slowest = min(rates, key=lambda stage: stage.rate(stage.max_workers))
        if slowest.rate(slowest.max_workers) <= cpus * (1.0 + 1e-6):
            return cpus, f"stage {slowest.name} with {slowest.max_workers} workers"
        return cpus, f"{observation.cpus:g} CPUs"

    def _setting(self, observation: Observation, target: float) -> dict[str, int]:
        """Workers, threads and prefetch for a rate, as much of it as memory allows."""
        rates = self._estimator.rates(self._space)
        prefetch = self._prefetch(observation)
        share = 1.0
        while True:
            values = self._for_rate(rates, observation, share * target)
            if self._bytes(values, prefetch) <= self._bytes_allowed(observation) or share < 0.05:
                break
            prefetch, share = (prefetch // 2, share) if prefetch > 1 else (prefetch, 0.9 * share)
        if PREFETCH in self._space:
            values[PREFETCH] = prefetch
        return self._space.clip(values)

    def _for_rate(self, rates: Sequence[StageRate], observation: Observation, target: float) -> dict[str, int]:
        values, running, blocked = {}, 0.0, 0.0
        for stage in rates:
            busy = min(stage.workers_for(target), 4.0 * observation.cpus + 4.0 * target * stage.blocking_s)
            spare = 1.0 + self._config.headroom
            # One more than needed: with a single worker a stage idles while its result waits to be taken.
            values[workers_of(stage.name)] = math.ceil(busy * spare * self._extra.get(stage.name, 1.0) - 1e-9) + 1
            cpu, seconds = stage.cpu_with(busy), stage.cpu_with(busy) + stage.blocking_s
            running += busy * cpu / seconds if seconds > 0 else 0.0
            blocked += busy * spare * stage.blocking_s / seconds if seconds > 0 else 0.0
        if THREADS in self._space:
            # Threads beyond the CPUs only for what blocks: more would take CPUs from the trainer.
            on_cpus = min(math.ceil((1.0 + self._config.headroom) * running) + 1, math.ceil(observation.cpus))
            values[THREADS] = max(1, on_cpus) + math.ceil(blocked - 1e-9)
        return values

    def _prefetch(self, observation: Observation) -> int:
        """Doubled while a consumer that could be fed is starved now and then; halved when memory gets short."""
        now = observation.values.get(PREFETCH, 0)
        if observation.memory_ratio > self._config.memory_share:
            return max(1, now // 2)
        if not self._solved or PREFETCH not in self._space:
            return now
        fed = observation.consumer_rate_per_s < 0.95 * fluid_rate(self._estimator.rates(self._space), observation.cpus)
        starved = observation.starved_s > 0.01 * observation.window_s
        return max(2, 2 * now) if fed and starved and self._settling == 0 else max(now, 1)

    def _bytes(self, values: dict[str, int], prefetch: int) -> float:
        """Bytes that the elements of a setting may hold."""
        stages = list(self._estimator.stages.items())
        held = sum((values.get(workers_of(name), 1) + 2) * each.bytes_out for name, each in stages)
        return self._config.burst * (held + prefetch * stages[-1][1].bytes_out)

    def _bytes_allowed(self, observation: Observation) -> float:
        """What elements may hold: the memory share, less what the process uses beside them."""
        now = {name: value for name, value in observation.values.items() if name != PREFETCH}
        in_flight = self._bytes(now, observation.values.get(PREFETCH, 0)) / self._config.burst
        beside = max(observation.memory_used_bytes - in_flight, 0.0)
        return max(self._config.memory_share * observation.memory_limit_bytes - beside, 0.0)

    def _improve(self, observation: Observation, values: dict[str, int], target: float, limit: str) -> Proposal | None:
        """The solution, if it promises more than the present setting, or as much with far fewer workers."""
        rates = self._estimator.rates(self._space)
        now = [observation.values.get(workers_of(stage.name), 1) for stage in rates]
        new = [values.get(workers_of(stage.name), 1) for stage in rates]
        promised = min(target, min(stage.rate(k) for stage, k in zip(rates, new, strict=True)))
        present = min(target, min(stage.rate(k) for stage, k in zip(rates, now, strict=True)))
        if promised > (1.0 + self._config.gain) * present:
            return self._propose(observation, values, f"{present:.4g} -> {promised:.4g} a second expected ({limit})")
        if sum(new) < (1.0 - self._config.surplus) * sum(now) and promised >= (1.0 - self._config.gain) * present:
            return self._propose(observation, values, f"as fast with {sum(new)} workers as with {sum(now)} ({limit})")
        if values.get(PREFETCH, 0) != observation.values.get(PREFETCH, 0):
            change = {PREFETCH: values[PREFETCH]}
            return self._propose(
                observation, change, "the consumer waited although there is capacity, or memory is short"
            )
        return None

    def _refine(self, observation: Observation, target: float) -> Proposal:
        """Probe one more share of workers at the busiest stage when the pipeline is slower than predicted."""
        rate = self._recent_rate(observation)
        if observation.starved_s < self._config.shortfall * observation.window_s:
            return Proposal(reason=f"nothing, because the consumer is fed ({rate:.4g} a second)")
        if rate >= (1.0 - self._config.shortfall) * min(target, observation.consumer_rate_per_s):
            return Proposal(reason=f"nothing, because {rate:.4g} a second is within 3 % of what is possible")
        stages = [name for name in self._suspects(observation) if name not in self._refused]
        if not stages:
            return Proposal(
                reason=f"nothing, because more workers were tried at every stage and did not help ({rate:.4g})"
            )
        self._probe = _Probe(stages[0], dict(self._extra), rate, self._config.probe_windows)
        self._extra[stages[0]] = self._extra.get(stages[0], 1.0) * self._config.probe
        self._rates_seen.clear()
        values = self._setting(observation, target)
        proposal = self._propose(
            observation, values, f"{rate:.4g} of {target:.4g} a second: trying more workers at {stages[0]}"
        )
        self._settling = 0  # the probe itself waits
        return proposal

    def _suspects(self, observation: Observation) -> list[str]:
        """Stages where more workers might help, the most suspicious first.

        Workers of an ordered stage that are held back while the next stage has nothing to do are held back by one slow
        element: more of them let more be done ahead of it. Else the stage whose workers are the least idle limits.
        """
        scores = {}
        for stage, after in zip(observation.stages, [*observation.stages[1:], None], strict=True):
            time = max(stage.workers * observation.window_s, 1e-9)
            if after is None:
                starving = observation.starved_s / max(observation.window_s, 1e-9)
            else:
                starving = after.wait_input_s / max(after.workers * observation.window_s, 1e-9)
            held = stage.wait_output_s / time
            idle = (stage.wait_input_s + stage.wait_output_s) / time
            scores[stage.name] = max(held * starving, 0.0) - 0.1 * idle
        most = self._config.max_extra
        able = [n for n in scores if workers_of(n) in self._space and self._extra.get(n, 1.0) < most]
        return sorted(able, key=scores.__getitem__, reverse=True)

    def _judge_probe(self, observation: Observation, target: float) -> Proposal | None:
        """While a probe runs: wait; at its end keep or undo it."""
        if self._probe is None:
            return None
        self._rates_seen.append(observation.rate_per_s)
        self._probe.windows_left -= 1
        if self._probe.windows_left > 0:
            return Proposal(reason=f"nothing, because a probe of {self._probe.stage} is running")
        probe, self._probe = self._probe, None
        # The first window holds the change itself.
        rate = sum(self._rates_seen[1:]) / max(len(self._rates_seen) - 1, 1)
        self._rates_seen = [rate]
        if rate > (1.0 + self._config.gain / 2) * probe.rate:
            self._refused.clear()
            return Proposal(
                reason=f"nothing, because more workers at {probe.stage} helped: {probe.rate:.4g} -> {rate:.4g}"
            )
        self._extra = probe.before
        self._refused.add(probe.stage)
        return self._propose(
            observation,
            self._setting(observation, target),
            f"more workers at {probe.stage} did not help ({probe.rate:.4g} -> {rate:.4g}): undone",
        )

    def _recent_rate(self, observation: Observation) -> float:
        self._rates_seen = [*self._rates_seen, observation.rate_per_s][-4:]
        return sum(self._rates_seen) / len(self._rates_seen)

    def _propose(self, observation: Observation, values: dict[str, int], reason: str) -> Proposal:
        self._settling = 1
        changes = {name: value for name, value in values.items() if value != observation.values.get(name)}
        return Proposal(changes, reason)
