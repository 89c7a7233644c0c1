"""A log as arrays, as the peers take it: numbers, and ids numbered in the order in which they first appear."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headrace.logs.files import list_files
from headrace.training import JobConfig

__all__ = ["Columns", "IdLists", "read_columns", "windows"]

Ints = npt.NDArray[np.int64]

MAX_LIST_LENGTH = 50
"""Ids used of each list, as by the default job."""

NUM_WINDOWS = 10
"""As `headrace init` proposes for logs of one file."""


@dataclass(frozen=True)
class IdLists:
    """A column of id lists: `values[offsets[i]:offsets[i + 1]]` are those of row i."""

    offsets: Ints
    values: Ints

    @property
    def lengths(self) -> Ints:
        """Length [N] of each list."""
        return np.diff(self.offsets)

    @property
    def rows(self) -> Ints:
        """Row of each value."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.lengths)

    def padded(self) -> Ints:
        """The lists as [N, longest], with 0 after their ends."""
        out = np.zeros((len(self.lengths), max(1, int(self.lengths.max()))), np.int64)
        rows = self.rows
        out[rows, np.arange(len(rows)) - self.offsets[rows]] = self.values
        return out


@dataclass(frozen=True)
class Columns:
    """The columns of a log.

    Attributes:
        labels: float32 [N], the first label.
        dense: float64 [N] by name; NaN for null.
        ids: Numbers [N] of ids by name, from 1; 0 for null.
        lists: Lists of such numbers by name.
        sizes: Largest number + 1 of each column of ids or lists.
        shared: Column of lists or ids -> the column whose numbers it uses, as both hold the same ids.
    """

    labels: npt.NDArray[np.float32]
    dense: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    ids: dict[str, Ints] = field(default_factory=dict)
    lists: dict[str, IdLists] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)


def read_columns(job: JobConfig) -> Columns:
    """Read the columns of a job's schema. Columns that share a table in the job share the numbers of their ids."""
    schema = job.schema_of_logs
    features = [column.name for column in (*schema.dense, *schema.ids, *schema.id_lists)]
    label = schema.labels[0].name
    rows = pa.concat_tables(
        pq.ParquetFile(file.path).read(columns=[label, *features]) for file in list_files(job.data.path)
    ).combine_chunks()
    out = Columns(rows[label].to_numpy().astype(np.float32))
    for column in schema.dense:
        out.dense[column.name] = rows[column.name].cast(pa.float64()).to_numpy()
    names = [column.name for column in (*schema.ids, *schema.id_lists)]
    lists = {column.name for column in schema.id_lists}
    groups = [tuple(n for n in table.feature_names if n in names) for table in job.embeddings.tables.values()]
    alone = [(name,) for name in names if not any(name in group for group in groups)]
    for group in [*filter(None, groups), *alone]:
        ordered = sorted(group, key=lambda name: name in lists)  # the others use the numbers of a column of single ids
        numbers, size = _number([_values(rows[name]) for name in ordered])
        for name, values in zip(ordered, numbers, strict=True):
            out.sizes[name] = size
            if name != ordered[0]:
                out.shared[name] = ordered[0]
            if name in lists:
                out.lists[name] = _shortened(pc.list_value_length(rows[name]).fill_null(0).to_numpy(), values)
            else:
                out.ids[name] = values
    return out


def windows(num_rows: int) -> list[tuple[int, int]]:
    """First row and end of each window, for peers that are fitted again for each."""
    borders = np.linspace(0, num_rows, NUM_WINDOWS + 1).astype(int).tolist()
    return list(pairwise(borders))


def _values(column: pa.ChunkedArray) -> pa.Array:
    values = pc.list_flatten(column) if pa.types.is_nested(column.type) else column
    values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return values.cast(pa.int64() if pa.types.is_integer(values.type) else pa.string())


def _number(columns: Sequence[pa.Array]) -> tuple[list[Ints], int]:
    encoded = pa.concat_arrays(columns).dictionary_encode()
    numbers = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64) + 1
    return np.split(numbers, np.cumsum([len(column) for column in columns])[:-1]), len(encoded.dictionary) + 1


def _shortened(lengths: Ints, values: Ints) -> IdLists:
    starts = np.cumsum(lengths) - lengths
    kept = np.arange(len(values)) - np.repeat(starts, lengths) < MAX_LIST_LENGTH
    offsets = np.concatenate([[0], np.cumsum(np.minimum(lengths, MAX_LIST_LENGTH))])
    return IdLists(offsets.astype(np.int64), values[kept])
