"""`Lookahead`: announces the keys of batches that are ready to the stores that keep their rows in this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from headrace.embeddings import EmbeddingBags
from headrace.placement.micro_batches import MicroBatches, Split, whole
from headrace.placement.resident_store import ResidentStore
from headrace.tensors import Batch

__all__ = ["Lookahead"]


class Lookahead:
    """The batches ahead of the training step.

    Args:
        bags: The embeddings of a model, of which some have a `ResidentStore`.
        window: Maximum number of batches that are announced ahead.
        split: How batches are split if none is announced ahead.

    Attributes:
        waits_s: For each micro-batch of the newest step, the seconds for which it has waited for rows.
    """

    def __init__(self, bags: Sequence[EmbeddingBags], window: int, split: Split = whole) -> None:
        self.window = window
        self._stores = [(each.key_layout, each.store) for each in bags if isinstance(each.store, ResidentStore)]
        self._ahead: deque[Batch] = deque()
        self._micro_batches = None if window else MicroBatches(split, self._stores)
        self.waits_s: list[float] = []

    @contextmanager
    def training(
        self, batch: Batch, ready: Sequence[Batch], *, num_left: int | None = None
    ) -> Iterator[Iterator[Batch]]:
        """Context of the step of a batch. Announces later batches, and starts to fetch what the next ones need. Gives
        the batch, or the micro-batches that are trained in its place, one after the other.

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
            if self._micro_batches is None:
                store.prepare()
            if num_left is not None and len(self._ahead) > num_left:
                store.end_after(1 + num_left)
        self.waits_s = []
        yield self._timed([batch] if self._micro_batches is None else self._micro_batches.of(batch))
        self._ahead.popleft()
        for _, store in self._stores:
            store.finish()

    def _timed(self, parts: Iterable[Batch]) -> Iterator[Batch]:
        """Micro-batches, each followed by its wait."""
        for part in parts:
            before_s = sum(store.fetch_waited_s for _, store in self._stores)
            yield part
            self.waits_s.append(sum(store.fetch_waited_s for _, store in self._stores) - before_s)

    def _announce(self, batch: Batch) -> None:
        self._ahead.append(batch)
        for layout, store in self._stores:
            (found,) = batch.keys_of(layout)
            store.announce(found.keys, len(batch))
