"""`EvenSplit`: divides the CPUs evenly among the stages, at the start and after each resize; InTune's "Heuristic"."""

from __future__ import annotations

from headrace.tuning.observation import Observation
from headrace.tuning.policies.base import Proposal
from headrace.tuning.space import Space

__all__ = ["EvenSplit", "even_split"]


def even_split(space: Space, cpus: float) -> dict[str, int]:
    """Workers by knob: CPUs / stages, rounded down but at least one; the remainder goes to the first stages."""
    knobs = [knob for _, knob in space.worker_knobs()]
    if not knobs:
        return {}
    share, rest = divmod(int(cpus), len(knobs))
    return {knob.name: knob.clip(max(1, share + (i < rest))) for i, knob in enumerate(knobs)}


class EvenSplit:
    """Divides the CPUs evenly, at the start and whenever their number changes."""

    def start(self, space: Space, observation: Observation) -> Proposal:
        """Split the CPUs evenly."""
        self._space, self._cpus = space, observation.cpus
        return Proposal(even_split(space, observation.cpus), f"{observation.cpus:g} CPUs divided evenly")

    def decide(self, observation: Observation) -> Proposal:
        """Split again if the number of CPUs has changed."""
        if observation.cpus == self._cpus:
            return Proposal(reason=f"still {observation.cpus:g} CPUs")
        before, self._cpus = self._cpus, observation.cpus
        split = even_split(self._space, observation.cpus)
        return Proposal(split, f"CPUs {before:g} -> {observation.cpus:g}: divided evenly")
