"""`TunedDataLoader`: a torch `DataLoader` whose number of workers can change during iteration.

A `DataLoader` cannot change its number of workers. So for each change a new one is created, which continues the sampler
where the old one stops. While the last batches of the old loader are consumed, the workers of the new one start.

    sampler   0 1 2 3 4 5 | 6 7 8 9 ...
    old         0 1 2 3 4 5            drained, then its workers end
    new                     6 7 8 9    begins while the old one is drained

No batch is lost, repeated or reordered, and the consumer does not wait for processes to start.
"""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from headrace.errors import ConfigError
from headrace.tuning.adapters.one_stage import MAX_WORKERS, OneStageJob

__all__ = ["TunedDataLoader"]


class TunedDataLoader(OneStageJob):
    """Iterates like the `DataLoader` it wraps, and is a `Job` that a `Tuner` can drive.

    loader = TunedDataLoader(DataLoader(dataset, batch_size=512, shuffle=True))
    with Tuner(loader, "auto") as tuner:
        for batch in loader:
            ...
        print(tuner.explain())
    """

    def __init__(self, loader: DataLoader[Any], *, max_workers: int = MAX_WORKERS, **options: Any) -> None:
        """Wrap a loader: its dataset, sampler and settings are used; the loader itself is not iterated.

        Args:
            loader: A loader over a map-style dataset. Tuning starts at its `num_workers`, or at 1 if that is 0.
            max_workers: Maximum number of worker processes.
            options: Arguments of `OneStageJob`.

        Raises:
            ConfigError: The dataset is an `IterableDataset`, whose workers split the stream by worker number, so
                changing their number would lose and repeat rows.
        """
        if isinstance(loader.dataset, IterableDataset):
            raise ConfigError(
                f"TunedDataLoader: given the IterableDataset {type(loader.dataset).__name__}, whose workers split the "
                "stream by worker number, expected a map-style dataset (with __getitem__); "
                "headrace.pipeline.from_dataloader reads it with a fixed number of workers"
            )
        super().__init__("load", loader.num_workers, max_workers=max_workers, **options)
        self._loader = loader

    def __len__(self) -> int:
        """Number of batches of an epoch."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the batches of an epoch, in sampler order."""
        return self._count(self._batches())

    def _batches(self) -> Iterator[Any]:
        batched = self._loader.batch_sampler is not None
        indices = iter(self._loader.batch_sampler if batched else self._loader.sampler)  # type: ignore[arg-type]
        feed, workers = _Feed(indices), self.workers
        batches = self._begin(feed, workers, batched)
        while True:
            if self.workers != workers:
                feed.ends = True
                drained, feed, workers = batches, _Feed(indices), self.workers
                batches = self._begin(feed, workers, batched)  # starts its workers
                yield from self._unpack(drained)
            done = next(batches, None)
            if done is None:
                return
            yield from self._unpack((done,))

    def _unpack(self, batches: Any) -> Iterator[Any]:
        for done in batches:
            self.totals.services += 1
            self.totals.cpu_s += done.cpu_s
            self.totals.wall_s += done.wall_s
            self.totals.num_bytes += done.num_bytes
            yield done.batch

    def _begin(self, feed: _Feed, workers: int, batched: bool) -> Iterator[Any]:
        loader = self._loader
        sampling: dict[str, Any] = {"batch_sampler": feed} if batched else {"batch_size": None, "sampler": feed}
        with warnings.catch_warnings():
            # Workers that wait for storage may outnumber the CPUs; the tuner decides that.
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            made = DataLoader(
                _TimedDataset(loader.dataset),
                **sampling,
                num_workers=workers,
                collate_fn=_TimedCollate(loader.collate_fn),  # type: ignore[arg-type]
                pin_memory=loader.pin_memory,
                timeout=loader.timeout,
                worker_init_fn=loader.worker_init_fn,
                multiprocessing_context=loader.multiprocessing_context,
                generator=loader.generator,
                prefetch_factor=loader.prefetch_factor,
            )
            # Workers are forks: if they collected inherited garbage, say a connection, it could wait for threads that
            # do not exist.
            gc.collect()
            return iter(made)


class _Feed:
    """Passes on a sampler's indices until told to stop; later indices stay in the sampler."""

    def __init__(self, indices: Iterator[Any]) -> None:
        self._indices = indices
        self.ends = False

    def __iter__(self) -> Iterator[Any]:
        while not self.ends:
            try:
                yield next(self._indices)
            except StopIteration:
                return


class _Fetched(NamedTuple):
    """Items fetched by a worker, and when it started, in wall time and thread CPU time."""

    items: Any
    wall_s: float
    cpu_s: float


class _Done(NamedTuple):
    """A batch and the time it took. A named tuple, because torch can pin those."""

    batch: Any
    wall_s: float
    cpu_s: float
    num_bytes: int


class _TimedDataset(Dataset[_Fetched]):
    """A dataset that records when a worker starts to fetch."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: Any) -> _Fetched:
        began, cpu = time.perf_counter(), time.thread_time()
        return _Fetched(self._dataset[index], began, cpu)

    def __getitems__(self, indices: Sequence[Any]) -> _Fetched:
        began, cpu = time.perf_counter(), time.thread_time()
        fetch_all = getattr(self._dataset, "__getitems__", None)
        items = fetch_all(indices) if fetch_all else [self._dataset[index] for index in indices]
        return _Fetched(items, began, cpu)


class _TimedCollate:
    """Collates like the loader, and measures the time of the batch from its first item on."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self._collate = collate

    def __call__(self, fetched: _Fetched) -> _Done:
        batch = self._collate(fetched.items)
        wall_s, cpu_s = time.perf_counter() - fetched.wall_s, time.thread_time() - fetched.cpu_s
        return _Done(batch, wall_s, cpu_s, _num_bytes(batch))


def _num_bytes(batch: Any) -> int:
    if isinstance(batch, torch.Tensor):
        return batch.nbytes
    if isinstance(batch, Mapping):
        return sum(map(_num_bytes, batch.values()))
    return sum(map(_num_bytes, batch)) if isinstance(batch, tuple | list) else 0
