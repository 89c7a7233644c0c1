"""`Relaunched`: emulates an operator who restarts the job at each resize, so that a static tuner starts again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from headrace.tuning.observation import Observation
from headrace.tuning.policies.base import Policy, Proposal
from headrace.tuning.space import Space

__all__ = ["Relaunched"]


class Relaunched:
    """The "Adaptive" baselines of InTune's evaluation: checkpoint and relaunch when the machine changes."""

    def __init__(self, make: Callable[[], Policy]) -> None:
        """Create a policy with `make` for each launch."""
        self._make = make

    def start(self, space: Space, observation: Observation) -> Proposal:
        """Start the policy."""
        self._space, self._cpus, self._inner = space, observation.cpus, self._make()
        return self._inner.start(space, observation)

    def decide(self, observation: Observation) -> Proposal:
        """Relaunch if the CPUs changed, else return the policy's decision."""
        if observation.cpus == self._cpus:
            return self._inner.decide(observation)
        before, self._cpus, self._inner = self._cpus, observation.cpus, self._make()
        first = self._inner.start(self._space, observation)
        reason = f"CPUs {before:g} -> {observation.cpus:g}: job relaunched; {first.reason}"
        return replace(first, reason=reason, relaunch=True)
