"""`OnePerStage`: one worker per stage; the unoptimised pipeline to which results are normalised."""

from __future__ import annotations

from headrace.tuning.observation import Observation
from headrace.tuning.policies.base import Proposal
from headrace.tuning.space import Space

__all__ = ["OnePerStage"]


class OnePerStage:
    """Sets one worker per stage at the start and never changes it."""

    def start(self, space: Space, observation: Observation) -> Proposal:
        """Set one worker per stage."""
        return Proposal({knob.name: knob.min for _, knob in space.worker_knobs()}, "one worker per stage")

    def decide(self, observation: Observation) -> Proposal:
        """Nothing."""
        return Proposal(reason="this setting is fixed")
