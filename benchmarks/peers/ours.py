"""headrace as an arm, and the limit beside it: threads that only decode the same columns."""

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
"""Peak of the ledger of each pass of this process."""


def parquet(logs: Logs, op: IdOp, *, workers: int) -> Callable[[], Iterator[Batch]]:
    """Parquet through `read_parquet`; 0 workers: inline, in the consumer's thread."""
    from headrace.logs import Schema
    from headrace.pipeline import read_parquet

    schema = Schema.from_dict(SCHEMA, where="benchmark")
    return _opened(lambda: read_parquet(str(logs.folder), schema), schema, op, workers)


def arrow(logs: Logs, op: IdOp, *, workers: int) -> Callable[[], Iterator[Batch]]:
    """A memory-mapped Arrow file through `read_arrow`, checked as logs are."""
    from headrace.logs import Schema
    from headrace.pipeline import read_arrow

    schema = Schema.from_dict(SCHEMA, where="benchmark")
    path = logs.arrow_file
    return _opened(lambda: read_arrow(pa.ipc.open_file(pa.memory_map(path)).read_all(), schema), schema, op, workers)


def _opened(read: Callable[[], Any], schema: Any, op: IdOp, workers: int) -> Callable[[], Iterator[Batch]]:
    from headrace.features import FeaturePlan, warmup
    from peers.work import BATCH_SIZE

    warmup()  # as `headrace warmup` or the first run of a job does: kernels are loaded before the first pass

    plan = FeaturePlan.from_config(config(op), schema)
    options = {"executor": "inline"} if workers == 0 else {"workers": workers}

    def run() -> Iterator[Batch]:
        with read().batch(BATCH_SIZE).transform(plan).open(**options) as batches:
            for batch in batches:
                (sparse,) = batch.sparse
                # Every id has its place: values in the order of features are [26, B].
                yield Batch(batch.dense, sparse.values.view(len(IDS), -1), batch.labels[:, 0])
            PEAKS.append(batches.counters().peak_bytes)

    return run


def decode(logs: Logs, op: IdOp, *, threads: int) -> Callable[[], Iterator[int]]:
    """No loader: threads that decode the same columns with pyarrow, row group by row group; yields rows."""

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
