"""Helpers for pipeline tests: a source with all difficult cases, and checks of pipeline guarantees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.logs.source import REJECT_SCHEMA, ROW_ID, SourceBatch, make_row_id
from headrace.pipeline import BatchIterator, Pipeline, RowStats

__all__ = ["SyntheticSource", "assert_resumes_everywhere", "batches_of", "rows_of"]


@dataclass(frozen=True)
class SyntheticSource:
    """A source with batches of given sizes, including bad rows, batches without good rows and splits without batches.

    Row ids are those of a log with one file per split. The column `value` (float64) counts all rows.

    Attributes:
        batches: For each split, for each batch, (good rows, rows to quarantine, rows dropped).
    """

    batches: Sequence[Sequence[tuple[int, int, int]]]

    @classmethod
    def random(cls, seed: int, *, num_splits: int = 6, max_batches: int = 4, max_rows: int = 40) -> SyntheticSource:
        """Create a source with a random shape."""
        rng = np.random.default_rng(seed)
        return cls(
            [
                [
                    (int(rng.integers(max_rows) * (rng.random() < 0.8)), int(rng.integers(4)), int(rng.integers(4)))
                    for _ in range(rng.integers(max_batches + 1))
                ]
                for _ in range(num_splits)
            ]
        )

    def __len__(self) -> int:
        return len(self.batches)

    @property
    def num_rows(self) -> int:
        """Number of rows, good and bad."""
        return sum(sum(batch) for split in self.batches for batch in split)

    @property
    def num_quarantined(self) -> int:
        """Rows to quarantine."""
        return sum(batch[1] for split in self.batches for batch in split)

    def read(self, split: int) -> Iterator[SourceBatch]:
        """Yield the batches of a split; in each the good rows come first."""
        first = sum(sum(batch) for before in self.batches[:split] for batch in before)
        row = 0
        for good, rejected, dropped in self.batches[split]:
            values = np.arange(first + row, first + row + good, dtype=np.float64)
            ids = make_row_id(split, row) + np.arange(good, dtype=np.int64)
            columns = {"value": values, ROW_ID: ids}
            rejects = [
                {
                    "file": f"file {split}",
                    "row_group": 0,
                    "row": row + good + number,
                    "column": "value",
                    "reason": "bad",
                }
                for number in range(rejected)
            ]
            batch = pa.RecordBatch.from_pylist(rejects, schema=REJECT_SCHEMA) if rejects else None
            yield SourceBatch(pa.record_batch(columns), good + rejected + dropped, batch, dropped)
            row += good + rejected + dropped

    def describe(self, split: int) -> str:
        """Describe a split like a row group."""
        return f"file {split}, row group 0"


def rows_of(batch: Any) -> list[int]:
    """Row ids of a record batch or a batch of tensors."""
    if isinstance(batch, pa.RecordBatch):
        return [int(row) for row in batch.column(ROW_ID).to_pylist()]
    return [int(row) for row in batch.row_ids.tolist()]


def batches_of(pipe: Pipeline, **options: Any) -> list[list[int]]:
    """Row ids of all batches of a pipeline opened with these options."""
    with pipe.open(**options) as batches:
        return [rows_of(batch) for batch in batches]


def assert_resumes_everywhere(
    pipe: Pipeline,
    *,
    first: Mapping[str, Any],
    then: Mapping[str, Any],
    expected: Sequence[Sequence[int]] | None = None,
) -> None:
    """Stop a pipeline at the start, after each batch and at the end, resume it each time, and compare.

    Args:
        pipe: The pipeline.
        first: Options of `open` before the stop.
        then: Options of `open` after the stop, for instance with a different number of workers.
        expected: Row ids of all batches; None to use those of an inline pass.

    Raises:
        AssertionError: Batches or row counts differ from those of a single pass.
    """
    expected = batches_of(pipe, executor="inline") if expected is None else expected
    whole = _row_stats_of(pipe.open(executor="inline"))
    for stop in range(len(expected) + 1):
        with pipe.open(**first) as batches:
            seen = [rows_of(next(batches)) for _ in range(stop)]
            state = batches.state_dict()
            before = batches.take_row_stats()
        assert seen == expected[:stop], f"the first {stop} batches differ"
        with pipe.open(**then, state=state) as batches:
            rest = [rows_of(batch) for batch in batches]
            after = batches.take_row_stats()
        assert rest == expected[stop:], f"resumed behind batch {stop}, the rest differs"
        assert _key(before, after) == _key(whole), f"stopped behind batch {stop}, the row counts differ"


def _row_stats_of(batches: BatchIterator) -> RowStats:
    with batches:
        for _ in batches:
            pass
        return batches.take_row_stats()


def _key(*parts: RowStats) -> tuple[Any, ...]:
    """The values that must be equal for two ways of reading the same rows."""
    rejects = Counter(
        (row["file"], row["row"], row["reason"])
        for part in parts
        for batch in part.rejects
        for row in batch.to_pylist()
    )
    names = ("num_read", "num_used", "num_filtered", "num_dropped")
    return (*(sum(getattr(part, name) for part in parts) for name in names), rejects)
