"""Rows of a nested file become a record batch with group columns: unique rows and inverse as they lie in the file."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as pt

from headrace.compiling import kernel
from headrace.logs.gathering import gather
from headrace.logs.nested.layout import Layout

__all__ = ["NestedRows", "leaf_paths"]

Ints = npt.NDArray[np.int32] | npt.NDArray[np.int64]


class NestedRows:
    """Some sessions of a nested file, with the columns that were read; nothing is copied until it is asked for.

    Args:
        batch: Sessions as they were read, with the impressions (of any column).
        layout: Of the file.
    """

    def __init__(self, batch: pa.RecordBatch, layout: Layout) -> None:
        self._batch = batch
        self._layout = layout
        impressions = batch.column(layout.impressions)
        self._offsets = impressions.offsets.to_numpy()
        self._first, self._stop = int(self._offsets[0]), int(self._offsets[-1])
        self._impressions = impressions.values

    @property
    def num_rows(self) -> int:
        """Impressions."""
        return self._stop - self._first

    @property
    def session_lengths(self) -> npt.NDArray[np.int32]:
        """int32 [sessions], impressions of each."""
        lengths: npt.NDArray[np.int32] = np.diff(self._offsets)
        return lengths

    def impression_column(self, name: str) -> pa.Array:
        """A column that lies in the impressions."""
        return self._impressions.field(name).slice(self._first, self.num_rows)

    def session_column(self, name: str) -> pa.Array:
        """A column with one value a session; its rows are found by `session_inverse`."""
        return self._batch.column(name)

    def session_inverse(self) -> npt.NDArray[np.int32]:
        """int32 [impressions], the session of each."""
        return np.repeat(np.arange(self._batch.num_rows, dtype=np.int32), self.session_lengths)

    def run_inverse(self, number: int) -> npt.NDArray[np.int32]:
        """int32 [impressions], the run of each, in the group of runs with this number."""
        runs = self._batch.column(self._layout.runs_name(number))
        offsets = runs.offsets.to_numpy()
        inverse = np.empty(self.num_rows, dtype=np.int32)
        _expand_runs(offsets, runs.values.field(self._layout.first).to_numpy(), self._offsets, inverse)
        return inverse

    def run_column(self, number: int, name: str) -> pa.Array:
        """Values of a column in the runs; lists as a `list_view` (int32 offsets) of the unions."""
        runs = self._batch.column(self._layout.runs_name(number))
        offsets = runs.offsets.to_numpy()
        first, num_runs = int(offsets[0]), int(offsets[-1] - offsets[0])
        values = runs.values.field(name).slice(first, num_runs)
        if not pt.is_struct(values.type):
            return values
        unions = self._batch.column(name)
        starts = values.field("start").fill_null(0).to_numpy()
        lengths = values.field("length").fill_null(0).to_numpy()
        views = np.repeat(unions.offsets.to_numpy()[:-1], np.diff(offsets)) + starts
        # A slice outside its union would read another session's ids, or memory that is not ours.
        union_ends = np.repeat(unions.offsets.to_numpy()[1:], np.diff(offsets))
        if (lengths < 0).any() or (starts < 0).any() or (views + lengths > union_ends).any():
            raise pa.ArrowInvalid(f"{self._layout.runs_name(number)}: slices of {name} lie outside their union")
        mask = values.is_null() if values.null_count else None
        return pa.ListViewArray.from_arrays(
            pa.array(views.astype(np.int32)), pa.array(lengths), unions.values, mask=mask
        )

    def plain_column(self, name: str) -> pa.Array:
        """A column of the log, one value an impression, wherever it lies."""
        if name in self._layout.session_columns:
            return gather(self.session_column(name), self.session_inverse())
        for number, runs in enumerate(self._layout.runs):
            if name in runs.columns:
                return gather(self.run_column(number, name), self.run_inverse(number))
        return self.impression_column(name)

    def plain(self, names: Sequence[str]) -> pa.RecordBatch:
        """Columns of the log, one row an impression."""
        return pa.RecordBatch.from_arrays([self.plain_column(name) for name in names], names=list(names))


def leaf_paths(layout: Layout, names: Collection[str], *, always_impressions: bool = True) -> list[str]:
    """What must be read of a nested file for some columns of the log: prefixes of the paths of its leaf columns.

    Args:
        layout: Of the file.
        names: Columns of the log.
        always_impressions: Whether to take some column of the impressions if none of the names is: how many
            impressions a session has is told by them only.
    """
    names = set(names)
    inside = [name for name in layout.impression_columns if name in names]
    if not inside and always_impressions:
        inside = list(layout.impression_columns[:1])
    paths = [f"{layout.impressions}.list.element.{name}" for name in inside]
    paths += [name for name in layout.session_columns if name in names]
    for number, runs in enumerate(layout.runs):
        wanted = [name for name in runs.columns if name in names]
        if wanted:
            runs_name = layout.runs_name(number)
            paths.append(f"{runs_name}.list.element.{layout.first}")
            paths += [f"{runs_name}.list.element.{name}" for name in wanted]
            paths += wanted  # the unions of lists; a number has no column of its own
    return paths


@kernel()
def _expand_runs(
    run_offsets: Ints, first: npt.NDArray[np.int32], row_offsets: Ints, inverse: npt.NDArray[np.int32]
) -> None:
    """Number each row's run, counted from the first run of the batch; rows before a session's first run have it too."""
    base_run = run_offsets[0]
    base_row = np.int64(row_offsets[0])
    for s in range(len(run_offsets) - 1):
        begin, end = row_offsets[s] - base_row, row_offsets[s + 1] - base_row
        run = run_offsets[s]
        for row in range(begin, end):
            while run + 1 < run_offsets[s + 1] and first[run + 1] <= row - begin:
                run += 1
            inverse[row] = run - base_run
