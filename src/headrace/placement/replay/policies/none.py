"""`NoCache`: rows are read and gradients sent in every step, as with a plain parameter server."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.placement.replay.movement import SHARD, Action, Drop, Kind, Move, Plan
from headrace.placement.replay.policy import Knowledge, PlacementPolicy, Setting, StepRows

__all__ = ["NoCache"]


class NoCache(PlacementPolicy):
    """No cache. Every trainer reads its unique rows before a step and sends their gradients after it.

    The next step waits for both, because nothing is known of its rows in time.
    """

    name = "none"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._previous: StepRows | None = None

    def plan(self, known: Knowledge) -> Plan:
        actions = list(self.finish())
        actions += [Move(Kind.READ, SHARD, trainer, known.now.of(trainer)) for trainer in self.setting.trainers]
        self._previous = known.now
        return Plan(actions)

    def finish(self) -> Sequence[Action]:
        step, self._previous = self._previous, None
        actions: list[Action] = []
        if step is not None:
            for trainer in self.setting.trainers:
                rows = step.of(trainer)
                actions += [Move(Kind.GRADIENT, trainer, SHARD, rows), Drop(trainer, rows)]
        return actions
