"""Cuts of record batches, ready to be joined: of groups only the unique rows they have."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from headrace.logs import groups
from headrace.pipeline.engine.element import Cut

__all__ = ["narrowed", "slices_of"]


def slices_of(cuts: list[Cut]) -> list[pa.RecordBatch]:
    """The rows of some cuts; where they are to be joined, groups keep only the unique rows these have."""
    slices = [cut.rows.slice(cut.start, cut.num_rows) for cut in cuts]
    return slices if len(slices) == 1 else [narrowed(rows) for rows in slices]


def narrowed(rows: pa.RecordBatch) -> pa.RecordBatch:
    """The same rows with dictionaries that are not larger than the rows.

    In session order a slice uses neighbouring unique rows: then the dictionary is a slice too, which copies nothing.
    (For 550 features in 22 groups that takes 0.2 ms; gathering them, which other orders need, 3 ms.)
    """
    arrays = []
    for name, column in zip(rows.schema.names, rows.columns, strict=True):
        if groups.is_group(name) and len(column):
            unique, inverse = groups.group_of(column)
            first, last = int(inverse.min()), int(inverse.max())
            if last - first >= len(inverse):
                return groups.compact(rows)
            indices = pa.array(inverse - np.int32(first))
            column = pa.DictionaryArray.from_arrays(indices, unique.slice(first, last - first + 1), safe=False)
        arrays.append(column)
    return pa.RecordBatch.from_arrays(arrays, schema=rows.schema)
