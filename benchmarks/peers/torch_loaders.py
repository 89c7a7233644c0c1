"""Loader arms of `torch.utils.data.DataLoader`, batch by batch and row by row, and of torchdata's nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from peers.data import Logs
from peers.work import BATCH_SIZE, COLUMNS, Batch, IdOp, numpy_batch, slices, torch_batch

__all__ = ["Batches", "dataloader", "nodes", "nodes_loader"]


class Batches(IterableDataset[Any]):
    """A dataset of batches; each worker reads its own row groups."""

    def __init__(self, logs: Logs, op: IdOp) -> None:
        self.row_groups = logs.row_groups
        self.op = op

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        own = self.row_groups if info is None else self.row_groups[info.id :: info.num_workers]
        for file, group in own:
            for rows in pq.ParquetFile(file).iter_batches(65_536, row_groups=[group], columns=list(COLUMNS)):
                for part in slices(rows):
                    yield torch_batch(part, self.op)


class Rows(Batches):
    """A dataset of rows, which the loader collates; the work is still done on whole batches, in numpy."""

    def __init__(self, logs: Logs, op: IdOp) -> None:
        super().__init__(logs, op)
        self.row_groups = self.row_groups[:1]

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        (file, group), *_ = self.row_groups
        parts = pq.ParquetFile(file).iter_batches(BATCH_SIZE, row_groups=[group], columns=list(COLUMNS))
        for number, part in enumerate(parts):
            if info is None or number % info.num_workers == info.id:
                dense, ids, labels = numpy_batch(part, self.op)
                yield from zip(dense, ids.T, labels, strict=True)


def dataloader(
    logs: Logs, op: IdOp, *, workers: int, by_row: bool = False, torch_threads: int | None = None
) -> Callable[[], Iterator[Batch]]:
    """Read with a DataLoader with default settings, except that workers stay alive between passes.

    Args:
        logs: Logs to read; with `by_row` only the first row group, because this is slow.
        op: Operation on ids.
        workers: Number of worker processes; with 0, the consumer's process does the work.
        by_row: Whether the dataset yields rows, which the loader collates into batches; otherwise it yields batches.
        torch_threads: Number of torch's threads in the consumer's process; None for torch's default, one per CPU.
            Workers have one.
    """
    if torch_threads is not None:
        torch.set_num_threads(torch_threads)
    dataset, size = (Rows(logs, op), BATCH_SIZE) if by_row else (Batches(logs, op), None)
    loader: Any = DataLoader(dataset, batch_size=size, num_workers=workers, persistent_workers=workers > 0)
    return lambda: (Batch(*batch) for batch in loader)


def nodes(logs: Logs, op: IdOp, *, workers: int) -> Callable[[], Iterator[Batch]]:
    """Read with torchdata's nodes: threads turn row groups into lists of batches, which are then unbatched."""
    loader = nodes_loader(logs, op, workers=workers)
    return lambda: (Batch(*batch) for batch in loader)


def nodes_loader(logs: Logs, op: IdOp, *, workers: int) -> Any:
    """Return the loader of `nodes`, which has a `state_dict`."""
    import torchdata.nodes as tn

    def read(item: tuple[str, int]) -> list[Any]:
        rows = pq.ParquetFile(item[0]).iter_batches(
            65_536, row_groups=[item[1]], columns=list(COLUMNS), use_threads=False
        )
        return [torch_batch(part, op) for record_batch in rows for part in slices(record_batch)]

    source = tn.IterableWrapper(logs.row_groups)
    mapped = tn.ParallelMapper(source, read, num_workers=workers, max_concurrent=workers)
    torch.set_num_threads(1)  # otherwise each mapper thread would start further threads, which is slower
    return tn.Loader(tn.Prefetcher(tn.Unbatcher(mapped), prefetch_factor=2))
