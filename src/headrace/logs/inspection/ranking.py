"""Ranks the rows of a log by each of its numbers alone: finds a baseline, and columns that give the label away."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headrace.auc import area_under_curve
from headrace.errors import DataError
from headrace.logs.checks import BadRowPolicy
from headrace.logs.files import list_files
from headrace.logs.groups import expand
from headrace.logs.parquet_source import ParquetSource, select_files
from headrace.logs.schema import Schema

__all__ = ["Ranking", "rank_numbers"]

MAX_ROWS = 100_000
MIN_SPLIT_ROWS = 4_096
"""Minimum rows per row group, so that a sample of many small groups reads few of them."""

Float64s = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Ranking:
    """How well a dense column ranks the first label alone.

    Attributes:
        column: Name of the column.
        auc: Area under the ROC curve of ranking by ascending values, null as 0; NaN if all labels are equal.
        num_rows: Rows of the sample.
    """

    column: str
    auc: float
    num_rows: int


def rank_numbers(location: str | Path, schema: Schema, *, max_rows: int = MAX_ROWS) -> list[Ranking]:
    """Rank the rows of a log by each of its dense columns alone; columns in the order of the schema.

    Reads only the first label and the dense columns, in row groups at even distances, so all of the log's time has a
    part in the sample. Bad rows and damaged row groups are left out.

    Args:
        location: A file, folder, glob or URL of Parquet files.
        schema: Schema of the log; its first label is ranked, rows above 0.5 as positive. A label that is a number has
            no ranking.
        max_rows: Maximum rows to read.
    """
    label, names = schema.labels[0].name, [column.name for column in schema.dense]
    if not names or schema.labels[0].is_regression:
        return []
    policy = BadRowPolicy(policy="drop")
    source = ParquetSource(select_files(list_files(location)), schema, columns=[label, *names], policy=policy)
    blocks = [np.empty((0, 1 + len(names)))]
    for split, num_rows in _spread([source.num_rows(split) for split in range(len(source))], max_rows):
        blocks += _read(source, split, num_rows, [label, *names])
    rows = np.concatenate(blocks)
    rows = np.nan_to_num(rows[~np.isnan(rows[:, 0])])  # rows without the label have no rank
    is_positive = rows[:, 0] > 0.5
    return [Ranking(name, _auc(rows[:, number], is_positive), len(rows)) for number, name in enumerate(names, 1)]


def _auc(values: Float64s, is_positive: npt.NDArray[np.bool_]) -> float:
    """Area under the ROC curve of ranking rows by ascending values."""
    distinct, place = np.unique(values, return_inverse=True)
    negatives, positives = (np.bincount(place[rows], minlength=len(distinct)) for rows in (~is_positive, is_positive))
    return area_under_curve(negatives.astype(np.float64), positives.astype(np.float64))[0]


def _spread(sizes: list[int], max_rows: int) -> Iterator[tuple[int, int]]:
    """Choose splits at even distances, and the rows to read of each, at most `max_rows` in all."""
    count = min(len(sizes), max(1, max_rows // MIN_SPLIT_ROWS))
    for number in range(count):
        split = number * len(sizes) // count
        yield split, min(sizes[split], max_rows // count)


def _read(source: ParquetSource, split: int, num_rows: int, names: list[str]) -> Iterator[Float64s]:
    """Read the first rows of a split as float64 [rows, names], with NaN for null."""
    try:
        for batch in source.read(split):
            rows = expand(batch.rows, names).slice(0, num_rows)
            columns = [rows.column(number).to_numpy(zero_copy_only=False) for number in range(len(names))]
            yield np.stack([column.astype(np.float64) for column in columns], axis=1)
            num_rows -= batch.num_read
            if num_rows <= 0:
                return
    except DataError:
        return  # `inspect_log` reports damaged row groups
