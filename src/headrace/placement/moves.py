"""`Moves`: what moved between a trainer, its shards and other trainers, and what would have moved if no row stayed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from headrace.placement.resident_store import ResidentStore
from headrace.placement.samples.sample_exchange import MovedSamples
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
        num_elsewhere: Of these, those whose rows another trainer kept.
        num_new: Of these, those that were never trained on before, so that nothing moved.
        num_bytes: Bytes that moved between trainer and shards, in both directions, and to other trainers.
        num_fetched_bytes: Of these, ids and states of rows that came from the shards.
        num_returned_bytes: Of these, ids and states of rows that went back.
        num_key_bytes: Of these, keys of batches that other trainers were told.
        num_state_bytes: Of these, states of rows handed over to other trainers.
        num_value_bytes: Of these, values of rows that other trainers read.
        num_gradient_bytes: Of these, gradients of rows that other trainers kept.
        num_sample_bytes: Of these, samples that other trainers trained.
        num_plain_bytes: Bytes of reads and updates of all keys in every step.
        num_placed_samples: Samples of which a trainer was chosen.
        num_moved_samples: Of these, those of this trainer's batches that another one trained.
    """

    num_keys: int = 0
    num_resident: int = 0
    num_elsewhere: int = 0
    num_new: int = 0
    num_bytes: int = 0
    num_fetched_bytes: int = 0
    num_returned_bytes: int = 0
    num_key_bytes: int = 0
    num_state_bytes: int = 0
    num_value_bytes: int = 0
    num_gradient_bytes: int = 0
    num_sample_bytes: int = 0
    num_plain_bytes: int = 0
    num_placed_samples: int = 0
    num_moved_samples: int = 0

    @classmethod
    def of(cls, stores: Iterable[ResidentStore], samples: MovedSamples | None = None) -> Moves:
        """The moves of some stores so far, and of samples, if they have moved."""
        total = cls()
        if samples is not None:
            total = cls(
                num_bytes=samples.key_bytes + samples.sample_bytes,
                num_key_bytes=samples.key_bytes,
                num_sample_bytes=samples.sample_bytes,
                num_placed_samples=samples.samples,
                num_moved_samples=samples.moved,
            )
        for store in stores:
            moved, kept, exchanged = store.remote.counters(), store.counters, store.exchanged
            total += cls(
                num_keys=kept.keys,
                num_resident=kept.resident,
                num_elsewhere=kept.elsewhere,
                num_new=kept.new,
                num_bytes=moved.bytes_sent + moved.bytes_received + exchanged.total,
                num_fetched_bytes=moved.bytes_fetched,
                num_returned_bytes=moved.bytes_put,
                num_key_bytes=exchanged.keys,
                num_state_bytes=exchanged.states,
                num_value_bytes=exchanged.values,
                num_gradient_bytes=exchanged.gradients,
                num_plain_bytes=kept.keys * (READ_AND_UPDATE_BYTES + 8 * store.remote.spec.embedding_dim),
            )
        return total

    def __add__(self, other: Moves) -> Moves:
        return Moves(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def __sub__(self, other: Moves) -> Moves:
        return Moves(*(getattr(self, each.name) - getattr(other, each.name) for each in fields(self)))

    def __str__(self) -> str:
        keys = max(self.num_keys, 1)
        moved, plain = format_bytes(self.num_bytes), format_bytes(self.num_plain_bytes)
        elsewhere = f", {self.num_elsewhere / keys:.1%} at another trainer" if self.num_elsewhere else ""
        placed = self.num_moved_samples / self.num_placed_samples if self.num_placed_samples else 0.0
        samples = f"; {placed:.1%} of the samples went to another trainer" if self.num_placed_samples else ""
        return (
            f"{self.num_resident / keys:.1%} of the rows that steps used were here{elsewhere}, "
            f"{self.num_new / keys:.1%} were new; {moved} moved, where reads and updates in every step move {plain}"
            f"{samples}"
        )
