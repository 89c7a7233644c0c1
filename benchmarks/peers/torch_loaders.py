"""`torch.utils.data.DataLoader`, batch by batch and row by row, and torchdata's nodes."""

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
    """Batches made of record batches; each worker reads its own row groups."""

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
    """The same, one row at a time, for the loader to collate; numbers go through numpy a batch at a time."""

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
    """A DataLoader with its default settings, but workers that stay alive between passes.

    Args:
        logs: What to read; row by row only the first row group, as it is slow.
        op: What to do with ids.
        workers: Processes; 0 for the consumer's own.
        by_row: The dataset yields rows and the loader makes batches of them; else it yields batches.
        torch_threads: Of the consumer's process; torch's default is one for each CPU. Workers have one.
    """
    if torch_threads is not None:
        torch.set_num_threads(torch_threads)
    dataset, size = (Rows(logs, op), BATCH_SIZE) if by_row else (Batches(logs, op), None)
    loader: Any = DataLoader(dataset, batch_size=size, num_workers=workers, persistent_workers=workers > 0)
    return lambda: (Batch(*batch) for batch in loader)


def nodes(logs: Logs, op: IdOp, *, workers: int) -> Callable[[], Iterator[Batch]]:
    """torchdata's nodes: row groups, read and worked on in threads, taken apart into batches."""
    loader = nodes_loader(logs, op, workers=workers)
    return lambda: (Batch(*batch) for batch in loader)


def nodes_loader(logs: Logs, op: IdOp, *, workers: int) -> Any:
    """The loader of `nodes`, which has a state."""
    import torchdata.nodes as tn

    def read(item: tuple[str, int]) -> list[Any]:
        rows = pq.ParquetFile(item[0]).iter_batches(
            65_536, row_groups=[item[1]], columns=list(COLUMNS), use_threads=False
        )
        return [torch_batch(part, op) for record_batch in rows for part in slices(record_batch)]

    source = tn.IterableWrapper(logs.row_groups)
    mapped = tn.ParallelMapper(source, read, num_workers=workers, max_concurrent=workers)
    torch.set_num_threads(1)  # each of its threads would start threads of its own: slower
    return tn.Loader(tn.Prefetcher(tn.Unbatcher(mapped), prefetch_factor=2))
