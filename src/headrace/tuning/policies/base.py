"""`Policy`: the interface of tuning policies, and `Proposal`, its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from headrace.tuning.observation import Observation
from headrace.tuning.space import Space

__all__ = ["Policy", "Proposal"]


@dataclass(frozen=True)
class Proposal:
    """A change proposed by a policy, and its reason.

    Attributes:
        values: New values by knob; empty for no change.
        reason: The reason in one line, also for no change.
        relaunch: Whether to restart the job with these values, as an operator would; only used by baselines.
    """

    values: Mapping[str, int] = field(default_factory=dict)
    reason: str = ""
    relaunch: bool = False


class Policy(Protocol):
    """A tuning policy: decides about a pipeline's settings from observations.

    A policy is plain state. It starts no threads and reads no clocks, so the simulator, the Gymnasium environment and
    the live loop can all run it. Proposals are clipped to the space, and the guard may refuse or undo them.
    """

    def start(self, space: Space, observation: Observation) -> Proposal:
        """Propose the first setting, before anything is measured; `observation` has limits and values but no counts."""
        ...

    def decide(self, observation: Observation) -> Proposal:
        """Propose a change after a window."""
        ...
