"""`Auto`: headrace's own policy and the default.

It measures each stage's needs over recent windows (CPU time, blocking time, contention, visits), solves the allocation
in closed form, and solves again immediately when the machine is resized or a stage drifts. Effects outside the model
are read from the counters where possible (a stage that holds finished elements back behind a slow one), and otherwise
found by small probes that are undone if they do not help. A setting is proposed only if its elements surely fit into
memory. No search, exploration or training is needed, because the counters show what a search would have to discover.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from headrace.tuning.estimating import Estimator
from headrace.tuning.observation import Observation, StageObservation
from headrace.tuning.policies.base import Proposal
from headrace.tuning.policies.even import even_split
from headrace.tuning.policies.sizing import Sizing, SizingConfig
from headrace.tuning.rates import fluid_rate
from headrace.tuning.space import PREFETCH, THREADS, Space, workers_of

__all__ = ["Auto", "AutoConfig"]


@dataclass(frozen=True, kw_only=True)
class AutoConfig:
    """Constants of `Auto`; the defaults were measured on the simulated pipelines of `benchmarks/bench_tuning.py`.

    Attributes:
        sizing: Constants for converting a rate to a setting.
        gain: A new solution is applied if it promises this relative gain, or if the machine or a stage has changed ...
        surplus: ... or if it needs fewer workers by this share.
        shortfall: Probes start if the measured rate is below the predicted one by this share ...
        idle: ... and this share of the CPUs is idle, because more workers do not help if all CPUs are busy.
        held: A stage holds finished elements back if its workers are blocked on output for this share of the time while
            the next stage's workers are idle for as large a share.
        probe: Factor on the workers of a probed stage, and of a stage that holds elements back.
        probe_windows: Windows of a probe, in addition to the time of an element in the pipeline.
        ramp: Maximum workers, relative to the CPUs, of a source that has not finished anything yet.
    """

    sizing: SizingConfig = field(default_factory=SizingConfig)
    gain: float = 0.02
    surplus: float = 0.3
    shortfall: float = 0.03
    idle: float = 0.03
    held: float = 0.1
    probe: float = 2.0
    probe_windows: int = 3
    ramp: float = 4.0


@dataclass
class _Probe:
    """A change on trial: the factors before it, their rate, and the rates since."""

    stage: str
    before: dict[str, float]
    rate: float
    rates: list[float] = field(default_factory=list)


class Auto:
    """headrace's default policy; see the module docstring."""

    def __init__(self, config: AutoConfig | None = None) -> None:
        """Use `config`, or the default constants."""
        self._config = config or AutoConfig()

    def start(self, space: Space, observation: Observation) -> Proposal:
        """Start with an even split at least, so that every stage gets measured."""
        self._space = space
        self._estimator = Estimator()
        self._sizing = Sizing(space, self._estimator, self._config.sizing)
        self._cpus = observation.cpus
        self._memory = observation.memory_limit_bytes
        self._probe: _Probe | None = None
        self._refused: set[str] = set()
        self._settling = 0
        self._since_change = 0
        self._solved = False
        self._recent: deque[Observation] = deque(maxlen=5)
        threads = {THREADS: math.ceil(observation.cpus)} if THREADS in space else {}
        split = even_split(space, observation.cpus)
        # More workers are kept: an engine whose stages share their workers needs no split.
        workers = {name: max(value, observation.values.get(name, 1)) for name, value in split.items()}
        values = space.clip({**workers, **threads})
        return Proposal(values, f"{observation.cpus:g} CPUs divided evenly until all stages are measured")

    def decide(self, observation: Observation) -> Proposal:
        """Solve again if anything has changed; otherwise work further ahead, probe, or change nothing."""
        drifted = self._estimator.add(observation)
        self._recent.append(observation)
        self._since_change += 1
        if not self._estimator.complete:
            return self._ramp(observation)
        changed = self._changes(observation, drifted)
        target, limit = self._sizing.target(observation)
        holding = self._holding(observation)
        for name in holding:
            now = observation.values.get(workers_of(name), 1)
            self._sizing.ahead[name] = min(
                math.ceil(self._config.probe * now), max(now, self._sizing.most(name, observation, target))
            )
        values = self._setting(observation, target)
        if changed:
            self._probe = None
            self._refused.clear()
            return self._propose(observation, values, f"{changed}: solved for {target:.4g} per second ({limit})")
        more = {name: k for name in map(workers_of, holding) if (k := values[name]) > observation.values.get(name, 1)}
        if more:
            why = f"{', '.join(holding)} holds finished elements back behind a slow one: working further ahead"
            return self._propose(observation, more, why)
        if not observation.delivered:
            return Proposal(reason="a window without deliveries says nothing about a setting")
        if self._settling > 0:
            self._settling -= 1
            return Proposal(reason="the last change is still settling")
        verdict = self._judge_probe(observation, target)
        if verdict is not None:
            return verdict
        proposal = self._improve(observation, values, target, limit)
        return proposal if proposal is not None else self._refine(observation, target)

    def _changes(self, observation: Observation, drifted: Sequence[str]) -> str:
        """Changes that make the current setting obsolete, in words; empty if there are none."""
        reasons = []
        if observation.cpus != self._cpus:
            reasons.append(f"CPUs {self._cpus:g} -> {observation.cpus:g}")
        if observation.memory_limit_bytes != self._memory:
            reasons.append("memory limit changed")
        if drifted:
            reasons.append(f"{', '.join(drifted)} has a different time per element than before")
        if self._estimator.complete and not self._solved:
            reasons.append("all stages measured")
            self._solved = True
        self._cpus, self._memory = observation.cpus, observation.memory_limit_bytes
        return "; ".join(reasons)

    def _ramp(self, observation: Observation) -> Proposal:
        """Add workers to a source that is busy but has not finished anything yet, because it is slow or waits.

        Other stages may run in processes, whose start takes long, and longer if there are many.
        """
        stage = observation.stages[0]
        if stage.left == 0:
            return Proposal(reason=f"{stage.name} has no more splits to start")
        name, most = workers_of(stage.name), math.ceil(self._config.ramp * observation.cpus)
        full = stage.workers >= most or observation.memory_ratio > self._config.sizing.memory_share / 2
        if name in self._space and not self._estimator.stages[stage.name].windows and not full:
            values = {name: min(2 * stage.workers, most)}
            if THREADS in self._space:  # it hardly uses the CPUs, or it would have finished something
                values[THREADS] = observation.values.get(THREADS, 0) + values[name] - stage.workers
            return Proposal(self._space.clip(values), f"{stage.name} has not finished anything: reading more at once")
        return Proposal(reason="not all stages have been measured yet")

    def _holding(self, observation: Observation) -> list[str]:
        """Stages whose finished elements wait behind a slow one while the next stage is idle.

        Only ordering can cause both at once, so no probe is needed: more workers let the stage work further ahead.
        """
        fed = observation.starved_s < self._config.shortfall * observation.window_s
        if fed or not self._solved or self._since_change < 2 or self._saturated():
            return []
        names = []
        for stage, starving in zip(observation.stages, self._starving(observation), strict=True):
            held = stage.wait_output_s / max(stage.workers * observation.window_s, 1e-9)
            if workers_of(stage.name) in self._space and min(held, starving) > self._config.held:
                names.append(stage.name)
        return names

    def _starving(self, observation: Observation) -> list[float]:
        """For each stage, the share of time in which the next stage's workers, or the consumer, are idle."""

        def waits(stage: StageObservation) -> float:
            return stage.wait_input_s / max(stage.workers * observation.window_s, 1e-9)

        last = observation.starved_s / max(observation.window_s, 1e-9)
        return [*(waits(stage) for stage in observation.stages[1:]), last]

    def _saturated(self) -> bool:
        """Whether all CPUs have been busy over several windows, since CPU time is counted at the end of services."""
        busy = sum(stage.busy_s for seen in self._recent for stage in seen.stages)
        time = sum(seen.cpus * seen.window_s for seen in self._recent)
        others = min(seen.machine_busy_ratio for seen in self._recent)
        return busy > (1.0 - self._config.idle) * time or others > 1.0 - self._config.idle

    def _setting(self, observation: Observation, target: float) -> dict[str, int]:
        values = self._sizing.setting(observation, target, prefetch=self._prefetch(observation))
        if observation.memory_ratio > self._config.sizing.memory_share / 2:
            return values
        # Removing one worker saves little, and adding it again may start a process.
        kept = {name: now for name, now in observation.values.items() if values.get(name) == now - 1}
        return values | {name: now for name, now in kept.items() if name != PREFETCH}

    def _prefetch(self, observation: Observation) -> int:
        """Prefetch, doubled while a consumer that could be kept busy sometimes waits; halved when memory gets short."""
        now = observation.values.get(PREFETCH, 0)
        if observation.memory_ratio > self._config.sizing.memory_share:
            return max(1, now // 2)
        if not self._solved or PREFETCH not in self._space:
            return now
        fed = observation.consumer_rate_per_s < 0.95 * fluid_rate(self._estimator.rates(self._space), observation.cpus)
        starved = observation.starved_s > 0.01 * observation.window_s
        return max(2, 2 * now) if fed and starved and self._settling == 0 else max(now, 1)

    def _improve(self, observation: Observation, values: dict[str, int], target: float, limit: str) -> Proposal | None:
        """Propose the solution if it promises a higher rate, or the same with far fewer workers."""
        rates = self._estimator.rates(self._space)
        now = [observation.values.get(workers_of(stage.name), 1) for stage in rates]
        new = [values.get(workers_of(stage.name), 1) for stage in rates]
        promised = min(target, min(stage.rate(k) for stage, k in zip(rates, new, strict=True)))
        present = min(target, min(stage.rate(k) for stage, k in zip(rates, now, strict=True)))
        if promised > (1.0 + self._config.gain) * present:
            return self._propose(observation, values, f"{present:.4g} -> {promised:.4g} per second expected ({limit})")
        if sum(new) < (1.0 - self._config.surplus) * sum(now) and promised >= (1.0 - self._config.gain) * present:
            return self._propose(observation, values, f"as fast with {sum(new)} workers as with {sum(now)} ({limit})")
        if values.get(PREFETCH, 0) != observation.values.get(PREFETCH, 0):
            change = {PREFETCH: values[PREFETCH]}
            return self._propose(observation, change, "the consumer waited despite free capacity, or memory is short")
        return None

    def _refine(self, observation: Observation, target: float) -> Proposal:
        """If the pipeline is slower than predicted, probe more workers at the most likely bottleneck."""
        rate = self._recent_rate()
        if observation.starved_s < self._config.shortfall * observation.window_s:
            return Proposal(reason=f"the consumer hardly waits ({rate:.4g} per second)")
        if self._saturated():
            return Proposal(reason=f"all CPUs are busy ({rate:.4g} per second)")
        if rate >= (1.0 - self._config.shortfall) * min(target, observation.consumer_rate_per_s):
            return Proposal(reason=f"{rate:.4g} per second is within 3 % of the maximum")
        if self._since_change < self._patience(observation):
            return Proposal(reason="elements started before the last change are still in flight")
        stages = [name for name in self._suspects(observation) if name not in self._refused]
        if not stages:
            return Proposal(reason=f"more workers were tried at every stage and did not help ({rate:.4g} per second)")
        self._probe = _Probe(stages[0], dict(self._sizing.extra), rate)
        self._sizing.extra[stages[0]] = self._sizing.extra.get(stages[0], 1.0) * self._config.probe
        values = self._setting(observation, target)
        reason = f"{rate:.4g} of {target:.4g} per second: trying more workers at {stages[0]}"
        proposal = self._propose(observation, values, reason)
        self._settling = 0  # the probe waits by itself
        return proposal

    def _suspects(self, observation: Observation) -> list[str]:
        """Stages where more workers might help, most likely first.

        If workers of an ordered stage are held back while the next stage is idle, a slow element blocks them, and more
        workers let the stage work further ahead. Otherwise the bottleneck is the stage whose workers are least idle.
        """
        scores = {}
        for stage, starving in zip(observation.stages, self._starving(observation), strict=True):
            time = max(stage.workers * observation.window_s, 1e-9)
            held = stage.wait_output_s / time
            idle = (stage.wait_input_s + stage.wait_output_s) / time
            scores[stage.name] = max(held * starving, 0.0) - 0.1 * idle
        most = self._config.sizing.max_extra
        able = [n for n in scores if workers_of(n) in self._space and self._sizing.extra.get(n, 1.0) < most]
        return sorted(able, key=scores.__getitem__, reverse=True)

    def _judge_probe(self, observation: Observation, target: float) -> Proposal | None:
        """Wait while a probe runs; at its end keep or undo it."""
        if self._probe is None:
            return None
        self._probe.rates.append(observation.rate_per_s)
        windows = self._patience(observation)
        if len(self._probe.rates) < windows:
            return Proposal(reason=f"a probe of {self._probe.stage} is running")
        probe, self._probe = self._probe, None
        after = probe.rates[-self._config.probe_windows + 1 :]  # earlier windows contain the change itself
        rate = sum(after) / len(after)
        told = f"{probe.rate:.4g} -> {rate:.4g}"
        if rate > (1.0 + self._config.gain / 2) * probe.rate:
            self._refused.clear()
            return Proposal(reason=f"more workers at {probe.stage} helped: {told} per second")
        self._sizing.extra = probe.before
        self._refused.add(probe.stage)
        values = self._setting(observation, target)
        return self._propose(observation, values, f"more workers at {probe.stage} did not help ({told}): undone")

    def _patience(self, observation: Observation) -> int:
        """Windows until a change takes effect: an element's time in all stages, plus those of a probe."""
        seconds = sum(stage.cpu_s + stage.blocking_s for stage in self._estimator.rates(self._space))
        return math.ceil(seconds / max(observation.window_s, 1e-9)) + self._config.probe_windows

    def _recent_rate(self) -> float:
        return sum(seen.delivered for seen in self._recent) / sum(seen.window_s for seen in self._recent)

    def _propose(self, observation: Observation, values: dict[str, int], reason: str) -> Proposal:
        self._settling, self._since_change = 1, 0
        changes = {name: value for name, value in values.items() if value != observation.values.get(name)}
        return Proposal(changes, reason)
