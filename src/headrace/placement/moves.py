"""`Moves`: what moved between a trainer and its shards, and what would have moved if no row stayed in the trainer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from headrace.placement.resident_store import ResidentStore
from headrace.resources import format_bytes

__all__ = ["Moves"]

READ_AND_UPDATE_BYTES = 20
"""Per key, beside a row and a gradient: the id of a read, and id and count of an update."""


@dataclass(frozen=True)
class Moves:
    """Sums over the steps of a trainer.

    Attributes:
        num_keys: Unique keys of all steps.
        num_resident: Of these, those whose rows were in the trainer.
        num_new: Of these, those that were never trained on before, so that nothing moved.
        num_bytes: Bytes of states and ids that moved, in both directions.
        num_plain_bytes: Bytes of reads and updates of all keys in every step.
    """

    num_keys: int = 0
    num_resident: int = 0
    num_new: int = 0
    num_bytes: int = 0
    num_plain_bytes: int = 0

    @classmethod
    def of(cls, stores: Iterable[ResidentStore]) -> Moves:
        """The moves of some stores so far."""
        total = cls()
        for store in stores:
            sent, kept = store.remote.counters(), store.counters
            plain = kept.keys * (READ_AND_UPDATE_BYTES + 8 * store.remote.spec.embedding_dim)
            total += cls(kept.keys, kept.resident, kept.new, sent.bytes_sent + sent.bytes_received, plain)
        return total

    def __add__(self, other: Moves) -> Moves:
        return Moves(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def __sub__(self, other: Moves) -> Moves:
        return Moves(*(getattr(self, each.name) - getattr(other, each.name) for each in fields(self)))

    def __str__(self) -> str:
        keys = max(self.num_keys, 1)
        moved, plain = format_bytes(self.num_bytes), format_bytes(self.num_plain_bytes)
        return (
            f"{self.num_resident / keys:.1%} of the rows that steps used were here, {self.num_new / keys:.1%} were "
            f"new; {moved} moved, where reads and updates in every step move {plain}"
        )
