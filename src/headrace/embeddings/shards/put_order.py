"""`PutOrder` decides which puts of trainers are new, and which fetches may be answered. Uses no threads or clocks.

Trainers that keep rows know when another one gives a row back. The fetch that follows may overtake that put, so it
names what it must find::

    trainer 0   put 1, mark 1: row r ─────────────┐
    trainer 1             fetch r, after (1, 0) ──│─ held ── answered
    shard                                         └─ taken
"""

from __future__ import annotations

from collections.abc import Sequence

from headrace.errors import ShardError

__all__ = ["PutOrder"]


class PutOrder:
    """Progress of the puts of the trainers of one table group.

    Args:
        num_trainers: Number of trainers, which are numbered from 0.
    """

    def __init__(self, num_trainers: int) -> None:
        self._numbers = [0] * num_trainers
        self._marks = [0] * num_trainers

    def take(self, trainer: int, number: int, mark: int) -> bool:
        """Count a put; False if it was taken before, so that nothing is to be done.

        Raises:
            ShardError: An earlier put of this trainer is missing.
        """
        taken = self._numbers[trainer]
        if number > taken + 1:
            raise ShardError(f"trainer {trainer}: given put {number}, expected put {taken + 1}")
        if number <= taken:
            return False
        self._numbers[trainer] = number
        self._marks[trainer] = max(mark, self._marks[trainer])
        return True

    def may_fetch(self, after: Sequence[int]) -> bool:
        """Whether a fetch that names these marks may be answered now."""
        return all(taken >= mark for taken, mark in zip(self._marks, after, strict=False))

    def missing(self, after: Sequence[int]) -> list[int]:
        """Trainers whose puts have not reached their mark."""
        return [trainer for trainer, mark in enumerate(after) if self._marks[trainer] < mark]
