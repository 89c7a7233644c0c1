"""`Lookahead`: announces the keys of batches that are ready to the stores that keep their rows in this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from headrace.embeddings import EmbeddingBags
from headrace.placement.resident_store import ResidentStore
from headrace.tensors import Batch

__all__ = ["Lookahead"]


class Lookahead:
    """The batches ahead of the training step.

    Args:
        bags: The embeddings of a model, of which some have a `ResidentStore`.
        window: Maximum number of batches that are announced ahead.
    """

    def __init__(self, bags: Sequence[EmbeddingBags], window: int) -> None:
        self.window = window
        self._stores = [(each.key_layout, each.store) for each in bags if isinstance(each.store, ResidentStore)]
        self._ahead: deque[Batch] = deque()

    @contextmanager
    def training(self, batch: Batch, ready: Sequence[Batch], *, num_left: int | None = None) -> Iterator[None]:
        """Context of the step of a batch. Announces later batches, and starts to fetch what the next ones need.

        Args:
            batch: The batch after the last one.
            ready: The batches after it that are ready, in order.
            num_left: How many of them belong to the same window, if its end is known.
        """
        for each in [batch, *ready][len(self._ahead) :]:
            if self._ahead and not all(store.has_room for _, store in self._stores):
                break
            self._announce(each)
        for _, store in self._stores:
            store.prepare()
            if num_left is not None and len(self._ahead) > num_left:
                store.end_after(1 + num_left)
        yield
        self._ahead.popleft()
        for _, store in self._stores:
            store.finish()

    def _announce(self, batch: Batch) -> None:
        self._ahead.append(batch)
        for layout, store in self._stores:
            (found,) = batch.keys_of(layout)
            store.announce(found.keys, len(batch))
