"""`StepMerger`: decides when the parts of a step are applied and which reads may be answered; no threads, no clocks.

A synchronous step, two trainers::

    trainer 0   read(after 0) ─ update 1 ───────────────┐ read(after 1): held ───────┬─ answered
    trainer 1   read(after 0) ───────────── update 1 ─┐ │                            │
    shard                                             └─┴─ both merged, 1 is applied ┘

Every trainer hands in its part of every step once, in order, also of a step in which it has no key of this shard.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from headrace.errors import ShardError

__all__ = ["Decision", "StepMerger"]

Part = TypeVar("Part")


@dataclass(frozen=True)
class Decision(Generic[Part]):
    """What to do with a trainer's part of a step.

    Attributes:
        steps: Steps to make now, in this order; each is the parts to merge, in trainer order.
        repeated: It had come before: nothing is to be done.
    """

    steps: tuple[tuple[Part, ...], ...] = ()
    repeated: bool = False


@dataclass
class StepMerger(Generic[Part]):
    """How far the trainers of one table group are.

    Attributes:
        num_trainers: Trainers, numbered from 0.
        merged: Whether the parts of a step wait for each other and count as one update; False applies each as it comes
            and holds no read.
        applied: The last step that is applied, of all trainers.
        max_ahead: A trainer may be at most so many steps ahead of `applied`; bounds what is kept waiting.
        what: What is counted, for messages: evictions of a session are merged as steps are.
    """

    num_trainers: int
    merged: bool = True
    applied: int = 0
    max_ahead: int = 8
    what: str = "step"
    _steps: list[int] = field(init=False)  # the last step of each trainer
    _waiting: dict[int, dict[int, Part]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._steps = [self.applied] * self.num_trainers

    def check_trainer(self, trainer: int) -> None:
        """Refuse a number that no trainer has.

        Raises:
            ShardError: Names the trainer and the range.
        """
        if not 0 <= trainer < self.num_trainers:
            raise ShardError(f"trainer {trainer}: expected 0 <= trainer < {self.num_trainers}")

    def may_update(self, step: int) -> bool:
        """Whether a part of this step may come in now; else it has to wait for other trainers."""
        return not self.merged or step <= self.applied + self.max_ahead

    def check_step(self, trainer: int, step: int) -> None:
        """Refuse a step that is neither the trainer's next nor one that came before.

        Raises:
            ShardError: Names both steps.
        """
        self.check_trainer(trainer)
        expected = self._steps[trainer] + 1
        if step > expected:
            raise ShardError(f"trainer {trainer}: given {self.what} {step}, expected {self.what} {expected}")

    def update(self, trainer: int, step: int, part: Part) -> Decision[Part]:
        """A trainer's part of a step has come in, `may_update` being true.

        Raises:
            ShardError: It is not the trainer's next step; nothing has changed.
        """
        self.check_step(trainer, step)
        if step <= self._steps[trainer]:
            return Decision(repeated=True)
        self._steps[trainer] = step
        if not self.merged:
            self.applied = min(self._steps)
            return Decision(((part,),))
        self._waiting.setdefault(step, {})[trainer] = part
        steps = []
        while len(self._waiting.get(self.applied + 1, {})) == self.num_trainers:
            self.applied += 1
            parts = self._waiting.pop(self.applied)
            steps.append(tuple(parts[t] for t in range(self.num_trainers)))
        return Decision(tuple(steps))

    def may_read(self, after: int) -> bool:
        """Whether a read that has to see a step may be answered now."""
        return not self.merged or self.applied >= after

    def missing(self, step: int) -> list[int]:
        """Trainers whose part of a step has not come."""
        return [trainer for trainer, last in enumerate(self._steps) if last < step]
