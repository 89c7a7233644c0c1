"""`Guard`: checks a policy's proposals: limits step sizes, protects memory, and undoes changes that hurt."""

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
        max_factor: Maximum factor by which a value grows at once ...
        max_step: ... or this step, whichever is larger, so that small values can grow.
        memory_ratio: Above this memory use no value is raised.
        held_ratio: If a stage waits for room in the memory budget for more than this share of the time, more workers
            anywhere would only wait too, so only the budget itself may be raised.
        loss: A change is undone if the rate falls by this share while the consumer waits for elements ...
        fed_loss: ... or by this smaller share if the consumer hardly waited before.
        fed: A consumer that waits for less than this share of the time keeps busy (is fed).
        windows: Windows before a change is judged; the first one contains the change itself.
        pause: Windows without further changes after one was undone.
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
    """A change not yet judged: values, rate and the consumer's state before it, and rates since."""

    before: dict[str, int]
    rate: float
    was_fed: bool
    rates: list[float]


class Guard:
    """Checks the proposals of a policy. Plain state without threads or clocks."""

    def __init__(self, space: Space, config: GuardConfig | None = None) -> None:
        """Create a guard for a job with this space."""
        self._space, self._config = space, config or GuardConfig()
        self._pending: _Pending | None = None
        self._pause = 0
        self._cpus = 0.0

    def check(self, observation: Observation, proposal: Proposal) -> Proposal:
        """Return the allowed part of a proposal, or a proposal that undoes the last change."""
        moved = self._cpus not in (0.0, observation.cpus)
        if moved:  # another machine: earlier rates are meaningless
            self._pending, self._pause = None, 0
        self._cpus = observation.cpus
        undo = self._judge(observation)
        if undo is not None:
            return undo
        if self._pause > 0:
            self._pause -= 1
            return Proposal(reason="a change that hurt was undone a moment ago")
        allowed, refused = self._bounded(observation, proposal)
        if not allowed:
            return Proposal(reason=proposal.reason if not refused else f"refused, because {refused}: {proposal.reason}")
        before = {name: observation.values[name] for name in allowed if name in observation.values}
        if self._pending is None:
            # The window in which the machine changed mixes two rates, so changes in it cannot be judged.
            if not moved:
                self._pending = _Pending(before, observation.rate_per_s, self._is_fed(observation), [])
        else:  # consecutive changes are judged, and undone, together
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
                refused, value = f"{name} limited to {most} for now", most
            if value < now and name != PREFETCH:  # shrinking prefetch frees memory, so it is never delayed
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
        return Proposal(pending.before, f"rate fell from {pending.rate:.4g} to {rate:.4g} per second: undone")

    def _is_fed(self, observation: Observation) -> bool:
        return observation.starved_s <= self._config.fed * observation.window_s
