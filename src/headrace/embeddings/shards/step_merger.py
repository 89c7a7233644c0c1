"""`StepMerger` decides when the parts of a step are applied and which reads may be answered. Uses no threads or clocks.

A synchronous step, two trainers::

    trainer 0   read(after 0) ─ update 1 ───────────────┐ read(after 1): held ───────┬─ answered
    trainer 1   read(after 0) ───────────── update 1 ─┐ │                            │
    shard                                             └─┴─ both merged, 1 is applied ┘

Every trainer sends its part of every step once, in order, even if the part has no keys of this shard.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from headrace.errors import ShardError

__all__ = ["Decision", "StepMerger"]

Part = TypeVar("Part")


@dataclass(frozen=True)
class Decision(Generic[Part]):
    """Decision on a trainer's part of a step.

    Attributes:
        steps: Steps to apply now, in order; each is a list of parts to merge, in trainer order.
        repeated: Whether the part was received before, so that nothing is to be done.
    """

    steps: tuple[tuple[Part, ...], ...] = ()
    repeated: bool = False


@dataclass
class StepMerger(Generic[Part]):
    """Progress of the trainers of one table group.

    Attributes:
        num_trainers: Number of trainers, which are numbered from 0.
        merged: Whether the parts of a step wait for each other and count as one update. If False, each part is applied
            on arrival and reads never wait.
        applied: Number of the last step applied for all trainers.
        max_ahead: Maximum number of steps that a trainer may be ahead of `applied`; bounds the waiting parts.
        what: Name of what is counted, for messages; evictions are merged like steps.
    """

    num_trainers: int
    merged: bool = True
    applied: int = 0
    max_ahead: int = 8
    what: str = "step"
    _steps: list[int] = field(init=False)  # last step of each trainer
    _waiting: dict[int, dict[int, Part]] = field(init=False, default_factory=dict)
    _has_skipped: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._steps = [self.applied] * self.num_trainers

    def check_trainer(self, trainer: int) -> None:
        """Check a trainer number.

        Raises:
            ShardError: The number is out of range.
        """
        if not 0 <= trainer < self.num_trainers:
            raise ShardError(f"trainer {trainer}: expected 0 <= trainer < {self.num_trainers}")

    def may_update(self, step: int) -> bool:
        """Whether a part of this step can be received now; otherwise it waits for other trainers."""
        return not self.merged or step <= self.applied + self.max_ahead

    def check_step(self, trainer: int, step: int) -> None:
        """Check that a step is the trainer's next one or a repeated one.

        Raises:
            ShardError: It is neither; the text names both steps.
        """
        self.check_trainer(trainer)
        expected = self._steps[trainer] + 1
        if step > expected:
            raise ShardError(f"trainer {trainer}: given {self.what} {step}, expected {self.what} {expected}")

    def update(self, trainer: int, step: int, part: Part) -> Decision[Part]:
        """Add a trainer's part of a step; `may_update` must be true.

        Raises:
            ShardError: The step is not the trainer's next one, or another trainer makes its steps itself; nothing has
                changed.
        """
        self.check_step(trainer, step)
        if self._has_skipped and self.num_trainers > 1:
            raise ShardError(f"trainer {trainer}: sends {self.what} {step}, but others keep rows; expected all or none")
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

    def skip_to(self, trainer: int, step: int) -> None:
        """Count all of a trainer's steps up to one as made, because it keeps rows and has trained them itself.

        A step is applied once all trainers have made it.

        Raises:
            ShardError: The trainer has already made a later step, or another one sends its steps to the shard.
        """
        self.check_trainer(trainer)
        if self._waiting:
            raise ShardError(f"trainer {trainer}: keeps rows, but others send their updates; expected all or none")
        if step < self._steps[trainer]:
            raise ShardError(f"trainer {trainer}: given {self.what} {step}, expected {self._steps[trainer]} or later")
        self._has_skipped = True
        self._steps[trainer] = step
        self.applied = min(self._steps)

    def may_read(self, after: int) -> bool:
        """Whether a read that must include a step may be answered now."""
        return not self.merged or self.applied >= after

    def missing(self, step: int) -> list[int]:
        """Trainers whose part of a step has not arrived."""
        return [trainer for trainer, last in enumerate(self._steps) if last < step]
