"""`Lookahead`: announces the keys of batches that are ready to the stores that keep their rows in this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from headrace.embeddings import EmbeddingBags
from headrace.placement.key_rounds import JointBatch
from headrace.placement.micro_batches import MicroBatches, Split, whole
from headrace.placement.resident_store import ResidentStore
from headrace.placement.samples.sample_exchange import SampleExchange
from headrace.tensors import Batch

__all__ = ["Lookahead"]


class Lookahead:
    """The batches ahead of the training step.

    Args:
        bags: The embeddings of a model, of which some have a `ResidentStore`.
        window: Maximum number of batches that are announced ahead.
        split: How batches are split if none is announced ahead.
        samples: Exchanges samples with other trainers; None to train each where it was read.

    Attributes:
        waits_s: For each micro-batch of the newest step, the seconds for which it has waited for rows.
    """

    def __init__(
        self,
        bags: Sequence[EmbeddingBags],
        window: int,
        split: Split = whole,
        samples: SampleExchange | None = None,
    ) -> None:
        self.window = window
        self._samples = samples
        self._stores = [(each.key_layout, each.store) for each in bags if isinstance(each.store, ResidentStore)]
        self._ahead: deque[Batch] = deque()
        self._micro_batches = None if window else MicroBatches(split, self._stores)
        self.waits_s: list[float] = []

    @contextmanager
    def training(
        self, batch: Batch, ready: Sequence[Batch], *, num_left: int | None = None
    ) -> Iterator[Iterator[Batch]]:
        """Context of the step of a batch. Announces later batches, and starts to fetch what the next ones need. Gives
        what is trained in its place: the batch, or one with as many samples of all trainers, or micro-batches, one
        after the other.

        Args:
            batch: The batch after the last one.
            ready: The batches after it that are ready, in order.
            num_left: How many of them belong to the same window, if its end is known.
        """
        for each in [batch, *ready][len(self._ahead) :]:
            if self._ahead and not self._has_room:
                break
            self._announce(each)
        if self._samples is not None:
            self._announce_plans(self._samples)
        for _, store in self._stores:
            if self._micro_batches is None:
                store.prepare()
            if num_left is not None and len(self._ahead) > num_left:
                store.end_after(1 + num_left)
        self.waits_s = []
        if self._samples is not None:
            batch = self._samples.take()
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

    @property
    def _has_room(self) -> bool:
        """Whether another batch may be announced."""
        if self._samples is None:
            return all(store.has_room() for _, store in self._stores)
        num_told_keys = self._samples.num_told_keys
        return self._samples.has_room and all(store.has_room(num_told_keys) for _, store in self._stores)

    def _announce(self, batch: Batch) -> None:
        self._ahead.append(batch)
        if self._samples is not None:
            self._samples.add(batch)
            return
        for layout, store in self._stores:
            (found,) = batch.keys_of(layout)
            store.announce(found.keys, len(batch))

    def _announce_plans(self, samples: SampleExchange) -> None:
        """Announce the keys of batches whose samples have a trainer now."""
        for plan in samples.learn():
            for layout, store in self._stores:
                parts = plan.keys[samples.layouts.index(layout)]
                store.announce_joint(JointBatch(parts, tuple(plan.shares.tolist())))
