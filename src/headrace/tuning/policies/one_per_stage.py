"""`OnePerStage`: one worker a stage and nothing else; the unoptimised pipeline every result is normalised to."""

from __future__ import annotations

from headrace.tuning.observation import Observation
from headrace.tuning.policies.base import Proposal
from headrace.tuning.space import Space

__all__ = ["OnePerStage"]


class OnePerStage:
    """Sets one worker a stage at the start and never changes it."""

    def start(self, space: Space, observation: Observation) -> Proposal:
        """One worker each."""
        return Proposal({knob.name: knob.min for _, knob in space.worker_knobs()}, "one worker a stage")

    def decide(self, observation: Observation) -> Proposal:
        """Nothing."""
        return Proposal(reason="nothing, because this setting is fixed")
