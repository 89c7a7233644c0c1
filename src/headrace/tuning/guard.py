"""`Guard`: stands between a policy and a running job: bounded steps, memory first, what hurts is undone."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.tuning.observation import Observation
from headrace.tuning.policies.base import Proposal
from headrace.tuning.space import PREFETCH, Space

__all__ = ["Guard", "GuardConfig"]


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """Constants of `Guard`.

    Attributes:
        max_factor: A value grows by at most this factor (and `max_step`) at once ...
        max_step: ... so that small values can still move.
        memory_ratio: Above this share of memory nothing is raised.
        held_ratio: A stage that waits for room in the memory budget for a larger share of the time has enough workers,
            and so have all others: nothing but the budget itself is raised.
        loss: A change is undone when the rate falls by this share and the consumer waits for elements ...
        fed_loss: ... and by this share already if the consumer hardly waited before: it must not be starved.
        fed: A consumer that waits for less than this share of the time is fed.
        windows: Windows a change is given before it is judged; the first holds the change itself.
        pause: Windows in which nothing else is tried after something was undone.
    """

    max_factor: float = 4.0
    max_step: int = 8
    memory_ratio: float = 0.9
    held_ratio: float = 0.3
    loss: float = 0.15
    fed_loss: float = 0.03
    fed: float = 0.05
    windows: int = 3
    pause: int = 10


@dataclass
class _Pending:
    """A change that has not been judged: values, rate and the consumer's state before it, rates since."""

    before: dict[str, int]
    rate: float
    was_fed: bool
    rates: list[float]


class Guard:
    """Checks proposals. Plain state: no thread, no clock."""

    def __init__(self, space: Space, config: GuardConfig | None = None) -> None:
        """Guard a job with this space."""
        self._space, self._config = space, config or GuardConfig()
        self._pending: _Pending | None = None
        self._pause = 0
        self._cpus = 0.0

    def check(self, observation: Observation, proposal: Proposal) -> Proposal:
        """What of a proposal may be done now, or an undoing of the last change."""
        moved = self._cpus not in (0.0, observation.cpus)
        if moved:  # another machine: rates from before say nothing any more
            self._pending, self._pause = None, 0
        self._cpus = observation.cpus
        undo = self._judge(observation)
        if undo is not None:
            return undo
        if self._pause > 0:
            self._pause -= 1
            return Proposal(reason="nothing, because a change that hurt has just been undone")
        allowed, refused = self._bounded(observation, proposal)
        if not allowed:
            return Proposal(reason=proposal.reason if not refused else f"nothing, because {refused}: {proposal.reason}")
        before = {name: observation.values[name] for name in allowed if name in observation.values}
        if self._pending is None:
            # The window in which the machine changed has a rate of both: what is changed in it cannot be judged.
            if not moved:
                self._pending = _Pending(before, observation.rate_per_s, self._is_fed(observation), [])
        else:  # changes that follow each other are judged, and undone, together
            self._pending.before = {**before, **self._pending.before}
            self._pending.rates.clear()
        return Proposal(allowed, proposal.reason + (f" ({refused})" if refused else ""))

    def _bounded(self, observation: Observation, proposal: Proposal) -> tuple[dict[str, int], str]:
        config, allowed, refused = self._config, {}, ""
        held = max((stage.wait_memory_s for stage in observation.stages), default=0.0)
        no_budget = held > config.held_ratio * observation.window_s
        for name, value in self._space.clip(proposal.values).items():
            now = observation.values.get(name, value)
            if value == now:
                continue
            if value > now and observation.memory_ratio > config.memory_ratio:
                refused = f"{observation.memory_ratio:.0%} of the memory is in use"
                continue
            if value > now and no_budget and self._space[name].unit != "bytes":
                refused = "elements wait for room in the memory budget"
                continue
            most = max(int(now * config.max_factor), now + config.max_step)
            if value > most:
                refused, value = f"{name} grows to {most} at first", most
            if value < now and name != PREFETCH:  # shrinking prefetch frees memory: never delayed
                value = max(value, int(now / config.max_factor))
            allowed[name] = value
        return allowed, refused

    def _judge(self, observation: Observation) -> Proposal | None:
        pending = self._pending
        if pending is None:
            return None
        pending.rates.append(observation.rate_per_s)
        if len(pending.rates) < self._config.windows:
            return None
        self._pending = None
        rates = pending.rates[1:]
        rate = sum(rates) / len(rates)
        loss = self._config.fed_loss if pending.was_fed else self._config.loss
        if self._is_fed(observation) or rate >= (1.0 - loss) * pending.rate:
            return None
        self._pause = self._config.pause
        return Proposal(pending.before, f"rate fell from {pending.rate:.4g} to {rate:.4g} a second: undone")

    def _is_fed(self, observation: Observation) -> bool:
        return observation.starved_s <= self._config.fed * observation.window_s
