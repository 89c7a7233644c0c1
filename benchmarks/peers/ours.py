"""Loader arms of headrace, and the limit of the machine: threads that only decode the same columns."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from peers.data import Logs
from peers.work import COLUMNS, IDS, SCHEMA, Batch, IdOp, config

__all__ = ["arrow", "decode", "parquet"]

PEAKS: list[int] = []
"""Peak bytes of the ledger, for each pass of this process."""


def parquet(logs: Logs, op: IdOp, *, workers: int) -> Callable[[], Iterator[Batch]]:
    """Read Parquet files with `read_parquet`; 0 workers mean inline, in the consumer's thread."""
    from headrace.logs import Schema
    from headrace.pipeline import read_parquet

    schema = Schema.from_dict(SCHEMA, where="benchmark")
    return _opened(lambda: read_parquet(str(logs.folder), schema), schema, op, workers)


def arrow(logs: Logs, op: IdOp, *, workers: int) -> Callable[[], Iterator[Batch]]:
    """Read a memory-mapped Arrow file with `read_arrow`, which checks rows as it does for logs."""
    from headrace.logs import Schema
    from headrace.pipeline import read_arrow

    schema = Schema.from_dict(SCHEMA, where="benchmark")
    path = logs.arrow_file
    return _opened(lambda: read_arrow(pa.ipc.open_file(pa.memory_map(path)).read_all(), schema), schema, op, workers)


def _opened(read: Callable[[], Any], schema: Any, op: IdOp, workers: int) -> Callable[[], Iterator[Batch]]:
    from headrace.features import FeaturePlan, warmup
    from peers.work import BATCH_SIZE

    warmup()  # like `headrace warmup` or the first run of a job: loads kernels before the first pass

    plan = FeaturePlan.from_config(config(op), schema)
    options = {"executor": "inline"} if workers == 0 else {"workers": workers}

    def run() -> Iterator[Batch]:
        with read().batch(BATCH_SIZE).transform(plan).open(**options) as batches:
            for batch in batches:
                (sparse,) = batch.sparse
                # Each feature has one id per row, so the values, in the order of features, are [26, B].
                yield Batch(batch.dense, sparse.values.view(len(IDS), -1), batch.labels[:, 0])
            PEAKS.append(batches.counters().peak_bytes)

    return run


def decode(logs: Logs, op: IdOp, *, threads: int) -> Callable[[], Iterator[int]]:
    """Decode the same columns with pyarrow in threads, row group by row group; yields the number of rows at the end."""

    def run() -> Iterator[int]:
        todo = iter(logs.row_groups)
        lock = threading.Lock()

        def work() -> None:
            while True:
                with lock:
                    item = next(todo, None)
                if item is None:
                    return
                file = pq.ParquetFile(item[0])
                for _ in file.iter_batches(
                    batch_size=65_536, row_groups=[item[1]], columns=list(COLUMNS), use_threads=False
                ):
                    pass

        workers = [threading.Thread(target=work) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        yield logs.num_rows

    return run
