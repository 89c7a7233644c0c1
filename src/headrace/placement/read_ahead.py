"""`ReadAhead`: has the tables in this process read rows from files before their batch is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from headrace.embeddings import EmbeddingBags
from headrace.tensors import Batch

__all__ = ["ReadAhead"]


class ReadAhead:
    """Announces the keys of batches that are ready to tables in this process that have rows in files.

    Args:
        bags: The embeddings of a model.
        window: Maximum number of batches that are announced ahead.

    Attributes:
        waits_s: Nothing, because reads of files are part of the forward pass; see `Lookahead`.
    """

    waits_s: Sequence[float] = ()

    def __init__(self, bags: Sequence[EmbeddingBags], window: int) -> None:
        self.window = window
        self._groups = [(each.key_layout, group) for each in bags if (group := each.table_group) and group.reads_ahead]
        self._num_announced = 0

    def __bool__(self) -> bool:
        """Whether any table has rows in files."""
        return bool(self._groups)

    @contextmanager
    def training(self, batch: Batch, ready: Sequence[Batch], *, num_left: int | None = None) -> Iterator[list[Batch]]:
        """Context of the step of a batch; see `Lookahead.training`."""
        batches = [batch, *ready]
        while self._num_announced < len(batches) and self._announce(batches[self._num_announced]):
            self._num_announced += 1
        yield [batch]
        self._num_announced = max(0, self._num_announced - 1)

    def _announce(self, batch: Batch) -> bool:
        """Announce a batch to all tables; returns False if one of them has no room yet."""
        parts = [(group, part) for layout, group in self._groups for part in batch.keys_of(layout)]
        return all(group.announce(part.keys, ahead=self._num_announced) for group, part in parts)
