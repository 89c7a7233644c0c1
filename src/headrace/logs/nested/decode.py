"""Decodes rows of a nested file to columns, with unique rows and inverse directly from the file."""

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
    """Sessions of a nested file with the columns that were read. Columns are decoded on demand.

    Args:
        batch: Sessions as read, with at least one impression column.
        layout: Layout of the file.
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
        """int32 [sessions], number of impressions per session."""
        lengths: npt.NDArray[np.int32] = np.diff(self._offsets)
        return lengths

    def impression_column(self, name: str) -> pa.Array:
        """A column stored in the impressions."""
        return self._impressions.field(name).slice(self._first, self.num_rows)

    def session_column(self, name: str) -> pa.Array:
        """A column with one value per session; `session_inverse` maps rows to sessions."""
        return self._batch.column(name)

    def session_inverse(self) -> npt.NDArray[np.int32]:
        """int32 [impressions], session of each impression."""
        return np.repeat(np.arange(self._batch.num_rows, dtype=np.int32), self.session_lengths)

    def run_inverse(self, number: int) -> npt.NDArray[np.int32]:
        """int32 [impressions], run of each impression in runs `number`."""
        runs = self._batch.column(self._layout.runs_name(number))
        offsets = runs.offsets.to_numpy()
        inverse = np.empty(self.num_rows, dtype=np.int32)
        _expand_runs(offsets, runs.values.field(self._layout.first).to_numpy(), self._offsets, inverse)
        return inverse

    def run_column(self, number: int, name: str) -> pa.Array:
        """Values of a column in runs `number`; lists as a `list_view` (int32 offsets) of the unions."""
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
        # A slice outside its union would read another session's ids, or invalid memory.
        union_ends = np.repeat(unions.offsets.to_numpy()[1:], np.diff(offsets))
        if (lengths < 0).any() or (starts < 0).any() or (views + lengths > union_ends).any():
            raise pa.ArrowInvalid(f"{self._layout.runs_name(number)}: slices of {name} are outside their union")
        mask = values.is_null() if values.null_count else None
        return pa.ListViewArray.from_arrays(
            pa.array(views.astype(np.int32)), pa.array(lengths), unions.values, mask=mask
        )

    def plain_column(self, name: str) -> pa.Array:
        """A column of the log with one value per impression, wherever it is stored."""
        if name in self._layout.session_columns:
            return gather(self.session_column(name), self.session_inverse())
        for number, runs in enumerate(self._layout.runs):
            if name in runs.columns:
                return gather(self.run_column(number, name), self.run_inverse(number))
        return self.impression_column(name)

    def plain(self, names: Sequence[str]) -> pa.RecordBatch:
        """Columns of the log with one row per impression."""
        return pa.RecordBatch.from_arrays([self.plain_column(name) for name in names], names=list(names))


def leaf_paths(layout: Layout, names: Collection[str], *, always_impressions: bool = True) -> list[str]:
    """The leaf columns of a nested file to read for some columns of the log, as path prefixes.

    Args:
        layout: Layout of the file.
        names: Columns of the log.
        always_impressions: Whether to read some impression column even if none is named, because only these tell the
            number of impressions per session.
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
            paths += wanted  # the unions of lists; numbers have no separate column
    return paths


@kernel()
def _expand_runs(
    run_offsets: Ints, first: npt.NDArray[np.int32], row_offsets: Ints, inverse: npt.NDArray[np.int32]
) -> None:
    """Compute each row's run, counted from the first run of the batch; rows before a session's first run belong to
    it."""
    base_run = run_offsets[0]
    base_row = np.int64(row_offsets[0])
    for s in range(len(run_offsets) - 1):
        begin, end = row_offsets[s] - base_row, row_offsets[s + 1] - base_row
        run = run_offsets[s]
        for row in range(begin, end):
            while run + 1 < run_offsets[s + 1] and first[run + 1] <= row - begin:
                run += 1
            inverse[row] = run - base_run
