"""`Auto`: headrace's own policy and the default.

It measures what each stage needs (CPU clock, blocking time, contention, visits; windowed), solves the allocation in
closed form, and solves anew at once when the machine is resized or a stage drifts. What the model cannot know is read
off the counters where they show it (a stage that holds finished elements back behind a slow one), else found by small
probes that are undone when they do not help. Memory is never bet on: a setting whose elements might not fit is not
proposed. Search, exploration and training are not needed, because the counters show what a search would have to
discover.
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
    """Constants of `Auto`; the defaults were measured over the simulated pipelines of `benchmarks/bench_tuning.py`.

    Attributes:
        sizing: How a rate becomes a setting.
        gain: A new solution is applied when it promises this share more, or the machine or a stage has changed.
        surplus: ... or when it needs this share fewer workers.
        shortfall: Probes begin when the measured rate is this share below the predicted one ...
        idle: ... and this share of the CPUs is idle: more workers cannot speed up CPUs that are all busy.
        held: A stage holds others back when this share of its workers' time is spent so, while the next stage's
            workers have nothing to do for as large a share.
        probe: Factor on a stage's workers in a probe, and on those of a stage that holds others back.
        probe_windows: Windows a probe is given, beside the time of an element in the pipeline.
        ramp: Most workers, relative to the CPUs, of a source that has not finished anything yet.
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
    """A change on trial: the headroom factors before it, the rate they gave, and rates since."""

    stage: str
    before: dict[str, float]
    rate: float
    rates: list[float] = field(default_factory=list)


class Auto:
    """See the top of this file."""

    def __init__(self, config: AutoConfig | None = None) -> None:
        """Args: config: Constants; the defaults if None."""
        self._config = config or AutoConfig()

    def start(self, space: Space, observation: Observation) -> Proposal:
        """At least an even split, by which every stage gets measured."""
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
        # What is there already is kept if it is more: an engine whose stages share their workers needs no split.
        workers = {name: max(value, observation.values.get(name, 1)) for name, value in split.items()}
        values = space.clip({**workers, **threads})
        return Proposal(values, f"{observation.cpus:g} CPUs divided evenly, until the stages have been measured")

    def decide(self, observation: Observation) -> Proposal:
        """Solve if anything has changed, else let more be done ahead, probe, or leave it."""
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
            return self._propose(observation, values, f"{changed}: solved for {target:.4g} a second ({limit})")
        more = {name: k for name in map(workers_of, holding) if (k := values[name]) > observation.values.get(name, 1)}
        if more:
            why = f"{', '.join(holding)} holds finished elements back behind a slow one: more may be done ahead of it"
            return self._propose(observation, more, why)
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

    def _ramp(self, observation: Observation) -> Proposal:
        """More workers for the source while it is at work and has not finished anything: it takes long, or waits.

        Other stages may run in processes, which take long to start, and longer when there are many.
        """
        stage = observation.stages[0]
        if stage.left == 0:
            return Proposal(reason=f"nothing, because {stage.name} has nothing left to begin")
        name, most = workers_of(stage.name), math.ceil(self._config.ramp * observation.cpus)
        full = stage.workers >= most or observation.memory_ratio > self._config.sizing.memory_share / 2
        if name in self._space and not self._estimator.stages[stage.name].windows and not full:
            values = {name: min(2 * stage.workers, most)}
            if THREADS in self._space:  # it does not use the CPUs: else it would finish something
                values[THREADS] = observation.values.get(THREADS, 0) + values[name] - stage.workers
            return Proposal(self._space.clip(values), f"{stage.name} has not finished anything: more at the same time")
        return Proposal(reason="nothing, because not every stage has been measured")

    def _holding(self, observation: Observation) -> list[str]:
        """Stages whose finished elements wait, in order, for a slow one, while the next stage has nothing to do.

        Only order can cause both at once, so this needs no trial: with more workers more is done ahead of the slow one.
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
        """For each stage the share of time in which the next one's workers, or the consumer, have nothing to do."""

        def waits(stage: StageObservation) -> float:
            return stage.wait_input_s / max(stage.workers * observation.window_s, 1e-9)

        last = observation.starved_s / max(observation.window_s, 1e-9)
        return [*(waits(stage) for stage in observation.stages[1:]), last]

    def _saturated(self) -> bool:
        """Whether all CPUs have been busy lately; CPU time is counted when a service ends, so not in one window."""
        busy = sum(stage.busy_s for seen in self._recent for stage in seen.stages)
        time = sum(seen.cpus * seen.window_s for seen in self._recent)
        others = min(seen.machine_busy_ratio for seen in self._recent)
        return busy > (1.0 - self._config.idle) * time or others > 1.0 - self._config.idle

    def _setting(self, observation: Observation, target: float) -> dict[str, int]:
        values = self._sizing.setting(observation, target, prefetch=self._prefetch(observation))
        if observation.memory_ratio > self._config.sizing.memory_share / 2:
            return values
        # One worker less saves little, and to have it back may mean to start a process.
        kept = {name: now for name, now in observation.values.items() if values.get(name) == now - 1}
        return values | {name: now for name, now in kept.items() if name != PREFETCH}

    def _prefetch(self, observation: Observation) -> int:
        """Doubled while a consumer that could be fed is starved now and then; halved when memory gets short."""
        now = observation.values.get(PREFETCH, 0)
        if observation.memory_ratio > self._config.sizing.memory_share:
            return max(1, now // 2)
        if not self._solved or PREFETCH not in self._space:
            return now
        fed = observation.consumer_rate_per_s < 0.95 * fluid_rate(self._estimator.rates(self._space), observation.cpus)
        starved = observation.starved_s > 0.01 * observation.window_s
        return max(2, 2 * now) if fed and starved and self._settling == 0 else max(now, 1)

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
        """Probe more workers at the stage that most likely limits, when the pipeline is slower than predicted."""
        rate = self._recent_rate()
        if observation.starved_s < self._config.shortfall * observation.window_s:
            return Proposal(reason=f"nothing, because the consumer is fed ({rate:.4g} a second)")
        if self._saturated():
            return Proposal(reason=f"nothing, because all CPUs are busy ({rate:.4g} a second)")
        if rate >= (1.0 - self._config.shortfall) * min(target, observation.consumer_rate_per_s):
            return Proposal(reason=f"nothing, because {rate:.4g} a second is within 3 % of what is possible")
        if self._since_change < self._patience(observation):
            return Proposal(reason="nothing, because elements begun before the last change are still on their way")
        stages = [name for name in self._suspects(observation) if name not in self._refused]
        if not stages:
            return Proposal(
                reason=f"nothing, because more workers were tried at every stage and did not help ({rate:.4g})"
            )
        self._probe = _Probe(stages[0], dict(self._sizing.extra), rate)
        self._sizing.extra[stages[0]] = self._sizing.extra.get(stages[0], 1.0) * self._config.probe
        values = self._setting(observation, target)
        reason = f"{rate:.4g} of {target:.4g} a second: trying more workers at {stages[0]}"
        proposal = self._propose(observation, values, reason)
        self._settling = 0  # the probe itself waits
        return proposal

    def _suspects(self, observation: Observation) -> list[str]:
        """Stages where more workers might help, the most suspicious first.

        Workers of an ordered stage that are held back while the next stage has nothing to do are held back by one slow
        element: more of them let more be done ahead of it. Else the stage whose workers are the least idle limits.
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
        """While a probe runs: wait; at its end keep or undo it."""
        if self._probe is None:
            return None
        self._probe.rates.append(observation.rate_per_s)
        windows = self._patience(observation)
        if len(self._probe.rates) < windows:
            return Proposal(reason=f"nothing, because a probe of {self._probe.stage} is running")
        probe, self._probe = self._probe, None
        after = probe.rates[-self._config.probe_windows + 1 :]  # earlier ones hold the change itself
        rate = sum(after) / len(after)
        told = f"{probe.rate:.4g} -> {rate:.4g}"
        if rate > (1.0 + self._config.gain / 2) * probe.rate:
            self._refused.clear()
            return Proposal(reason=f"nothing, because more workers at {probe.stage} helped: {told}")
        self._sizing.extra = probe.before
        self._refused.add(probe.stage)
        values = self._setting(observation, target)
        return self._propose(observation, values, f"more workers at {probe.stage} did not help ({told}): undone")

    def _patience(self, observation: Observation) -> int:
        """Windows after a change until deliveries show it: an element's time in all stages, and those of a probe."""
        seconds = sum(stage.cpu_s + stage.blocking_s for stage in self._estimator.rates(self._space))
        return math.ceil(seconds / max(observation.window_s, 1e-9)) + self._config.probe_windows

    def _recent_rate(self) -> float:
        return sum(seen.delivered for seen in self._recent) / sum(seen.window_s for seen in self._recent)

    def _propose(self, observation: Observation, values: dict[str, int], reason: str) -> Proposal:
        self._settling, self._since_change = 1, 0
        changes = {name: value for name, value in values.items() if value != observation.values.get(name)}
        return Proposal(changes, reason)
