"""`Policy`: the two methods every tuner has, and what they return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from headrace.tuning.observation import Observation
from headrace.tuning.space import Space

__all__ = ["Policy", "Proposal"]


@dataclass(frozen=True)
class Proposal:
    """What a policy wants, and why.

    Attributes:
        values: New values by knob; empty for "change nothing".
        reason: One line for people, also for "nothing, because".
        relaunch: Stop the job and start it with these values, as an operator would; only baselines ask for it.
    """

    values: Mapping[str, int] = field(default_factory=dict)
    reason: str = ""
    relaunch: bool = False


class Policy(Protocol):
    """Decides about a pipeline from what it sees.

    A policy is plain state: it starts no thread and reads no clock, so the simulator, the Gymnasium environment and the
    live loop drive it alike. What it proposes is clipped to the space, and the loop may refuse or undo it.
    """

    def start(self, space: Space, observation: Observation) -> Proposal:
        """The first setting, before anything has been measured; `observation` has limits and values but no counts."""
        ...

    def decide(self, observation: Observation) -> Proposal:
        """What to change after a window."""
        ...
