"""`EvenSplit`: the CPUs divided evenly over the stages, again after each resize; InTune's "Heuristic" baseline."""

from __future__ import annotations

from headrace.tuning.observation import Observation
from headrace.tuning.policies.base import Proposal
from headrace.tuning.space import Space

__all__ = ["EvenSplit", "even_split"]


def even_split(space: Space, cpus: float) -> dict[str, int]:
    """Workers by knob: CPUs / stages, rounded down, at least one each; the remainder goes to the first stages."""
    knobs = [knob for _, knob in space.worker_knobs()]
    if not knobs:
        return {}
    share, rest = divmod(int(cpus), len(knobs))
    return {knob.name: knob.clip(max(1, share + (i < rest))) for i, knob in enumerate(knobs)}


class EvenSplit:
    """Divides the CPUs evenly, and again whenever their number changes."""

    def start(self, space: Space, observation: Observation) -> Proposal:
        """An even split."""
        self._space, self._cpus = space, observation.cpus
        return Proposal(even_split(space, observation.cpus), f"{observation.cpus:g} CPUs divided evenly")

    def decide(self, observation: Observation) -> Proposal:
        """An even split of the new number of CPUs, if it is new."""
        if observation.cpus == self._cpus:
            return Proposal(reason=f"nothing, because there are {observation.cpus:g} CPUs as before")
        before, self._cpus = self._cpus, observation.cpus
        split = even_split(self._space, observation.cpus)
        return Proposal(split, f"CPUs {before:g} -> {observation.cpus:g}: divided evenly")
