"""`StepMerger`: decides when the pushes of a step are applied and which pulls may be answered; no threads, no clocks.

A synchronous step, two trainers::

    trainer 0   pull(after 0) ─ push 1 ───────────────┐ pull(after 1): held ─────┬─ answered
    trainer 1   pull(after 0) ───────────── push 1 ─┐ │                          │
    shard                                           └─┴─ both merged, applied 1 ─┘

Every trainer pushes every step once, in order, also a step in which it has no key of this shard.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from headrace.errors import ShardError

__all__ = ["Decision", "StepMerger"]

Payload = TypeVar("Payload")

MAX_REMEMBERED_PULLS = 4096
"""Pulls of a trainer whose repetition is recognised; a retry comes at once, so the last few would do."""


@dataclass(frozen=True)
class Decision(Generic[Payload]):
    """What to do with a push.

    Attributes:
        updates: Optimizer steps to make now, in this order; each is the pushes to merge, in trainer order.
        repeated: It had come before: nothing is to be done.
    """

    updates: tuple[tuple[Payload, ...], ...] = ()
    repeated: bool = False


@dataclass
class StepMerger(Generic[Payload]):
    """How far the trainers of one table are.

    Attributes:
        num_trainers: Trainers, numbered from 0.
        merged: Whether the pushes of a step wait for each other and count as one update; False applies each as it comes
            and holds no pull.
        applied: The last step that is applied, of all trainers.
        max_ahead: A trainer may push at most so many steps ahead of `applied`; bounds what is kept waiting.
    """

    num_trainers: int
    merged: bool = True
    applied: int = 0
    max_ahead: int = 8
    _pushed: list[int] = field(init=False)
    _waiting: dict[int, dict[int, Payload]] = field(init=False, default_factory=dict)
    _pulls: list[set[int]] = field(init=False)

    def __post_init__(self) -> None:
        self._pushed = [self.applied] * self.num_trainers
        self._pulls = [set() for _ in range(self.num_trainers)]

    def check_trainer(self, trainer: int) -> None:
        """Refuse a number that no trainer has.

        Raises:
            ShardError: Names the trainer and the range.
        """
        if not 0 <= trainer < self.num_trainers:
            raise ShardError(f"trainer {trainer}: expected 0 <= trainer < {self.num_trainers}")

    def may_push(self, step: int) -> bool:
        """Whether a push of this step may come in now; else it has to wait for other trainers."""
        return not self.merged or step <= self.applied + self.max_ahead

    def check_step(self, trainer: int, step: int) -> None:
        """Refuse a push that is neither the trainer's next nor one that came before.

        Raises:
            ShardError: Names both steps.
        """
        self.check_trainer(trainer)
        expected = self._pushed[trainer] + 1
        if step > expected:
            raise ShardError(f"trainer {trainer} pushed step {step}, expected step {expected}")

    def push(self, trainer: int, step: int, payload: Payload) -> Decision[Payload]:
        """A push has come in, `may_push` being true.

        Raises:
            ShardError: It is not the trainer's next step; nothing has changed.
        """
        self.check_step(trainer, step)
        if step <= self._pushed[trainer]:
            return Decision(repeated=True)
        self._pushed[trainer] = step
        if not self.merged:
            self.applied = min(self._pushed)
            return Decision(((payload,),))
        self._waiting.setdefault(step, {})[trainer] = payload
        updates = []
        while len(self._waiting.get(self.applied + 1, {})) == self.num_trainers:
            self.applied += 1
            pushes = self._waiting.pop(self.applied)
            updates.append(tuple(pushes[t] for t in range(self.num_trainers)))
        return Decision(tuple(updates))

    def may_pull(self, after_step: int) -> bool:
        """Whether a pull that has to see `after_step` may be answered now."""
        return not self.merged or self.applied >= after_step

    def missing(self, step: int) -> list[int]:
        """Trainers whose push of a step has not come."""
        return [trainer for trainer, pushed in enumerate(self._pushed) if pushed < step]

    def is_first(self, trainer: int, pull: int) -> bool:
        """Note a pull, and say whether it is new: sightings of a repeated one are not counted again.

        Args:
            trainer: Who pulls.
            pull: The number of the pull, rising with each of a trainer's pulls.
        """
        self.check_trainer(trainer)
        seen = self._pulls[trainer]
        if pull in seen:
            return False
        seen.add(pull)
        if len(seen) > 2 * MAX_REMEMBERED_PULLS:
            self._pulls[trainer] = set(sorted(seen)[-MAX_REMEMBERED_PULLS:])
        return True
