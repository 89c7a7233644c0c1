"""`read_log_rows`: the rows of embedding tables that each batch of a job uses, for replays of placement."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from torch import nn

from headrace.embeddings import embedding_bags, key_layouts
from headrace.embeddings.storage.row_formats import stored_bytes
from headrace.embeddings.tables.table_group import row_layout
from headrace.errors import ConfigError
from headrace.logs import ErrorBudget, ParquetSource, list_log, select_files
from headrace.observe.progress import Progress
from headrace.pipeline import BatchIterator
from headrace.placement.replay import RowBytes, RowStream
from headrace.placement.replay.batches import stream_of_batches
from headrace.tensors import Batch
from headrace.training.components import build_components
from headrace.training.feed import PlannedSources, open_batches, source_columns
from headrace.training.job import JobConfig

__all__ = ["LogRows", "read_log_rows"]


@dataclass(frozen=True)
class LogRows:
    """The rows that a job's batches use.

    Attributes:
        stream: The rows of each batch.
        row_bytes: Bytes of a row of the job's tables, of all modules together.
        num_left: Rows of the log after the last whole batch, which were read.
    """

    stream: RowStream
    row_bytes: RowBytes
    num_left: int


def read_log_rows(
    job: JobConfig,
    *,
    batch_size: int,
    num_batches: int | None = None,
    on_message: Callable[[str], None] = lambda line: None,
) -> LogRows:
    """Read a job's logs from the beginning, compute features, and find the rows of each batch, without training.

    The logs are one stream here: batches do not end with windows. The last rows, too few for a batch, are left out.

    Args:
        job: The job.
        batch_size: Samples per global batch.
        num_batches: Maximum number of batches; None for all.
        on_message: Called with notes on the logs.

    Raises:
        ConfigError: The job has no sparse features, or the logs have fewer rows than a batch.
        ErrorBudgetExceeded: There are more bad rows than the job allows.
    """
    components = build_components(job)
    layouts = key_layouts(components.model)
    if len(layouts) != 1:
        raise ConfigError(f"placement: given a model with {len(layouts)} sets of embedding tables, expected one")
    listing = list_log(job.data.path)
    for note in listing.notes:
        on_message(note)
    source = ParquetSource(
        select_files(list(listing.files)),
        job.schema_of_logs,
        columns=source_columns(job, components.plan),
        policy=job.data.bad_rows,
    )
    num_rows = sum(source.num_rows(split) for split in range(len(source)))
    if num_rows < batch_size:
        raise ConfigError(f"{job.data.path}: has {num_rows:,} rows, expected at least {batch_size:,}, a global batch")
    sources = PlannedSources(job, components.plan, [lambda: source], batch_size=batch_size)
    total = num_rows if num_batches is None else min(num_rows, num_batches * batch_size)
    with Progress("read", total=total) as progress, open_batches(job, sources, layouts=layouts) as batches:
        whole = _WholeBatches(batches, batch_size, num_batches, ErrorBudget(job.data.bad_rows), progress)
        stream = stream_of_batches(whole, layouts[0])
    return LogRows(stream, row_bytes_of(components.model), whole.num_left)


class _WholeBatches:
    """Batches of a pipeline, without a smaller one at the end."""

    def __init__(
        self, batches: BatchIterator, size: int, limit: int | None, budget: ErrorBudget, progress: Progress
    ) -> None:
        self._batches = batches
        self._size = size
        self._limit = limit
        self._budget = budget
        self._progress = progress
        self.num_left = 0

    def __iter__(self) -> Iterator[Batch]:
        for number, batch in enumerate(self._batches, 1):
            rows = self._batches.take_row_stats()
            self._budget.add(num_read=rows.num_read, num_bad=rows.num_bad)
            self._progress.advance(rows.num_read)
            if len(batch) < self._size:
                self.num_left = len(batch)
                return
            yield batch
            if number == self._limit:
                return


def row_bytes_of(model: nn.Module) -> RowBytes:
    """Bytes of a row and of its optimizer state, of all embedding modules together."""
    row = state = 0
    for bags in embedding_bags(model).values():
        layout = row_layout(bags.tables, 0)
        row += stored_bytes(layout.row_format, layout.embedding_dim)
        state += layout.optimizer.state_width * np.dtype(np.float32).itemsize
    return RowBytes(row, state)
