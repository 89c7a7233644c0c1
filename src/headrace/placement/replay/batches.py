"""`stream_of_batches`: a row stream from batches of features, with the keys that training would use."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from headrace.placement.replay.stream import Int32s, RowStream, Samples
from headrace.placement.samples.sample_keys import SampleKeys
from headrace.tensors import Batch, KeyFinder, Keys

__all__ = ["stream_of_batches"]


def stream_of_batches(batches: Iterable[Batch], finder: KeyFinder) -> RowStream:
    """Make a row stream from global batches of equal size. Rows are numbered by table and id.

    Args:
        batches: The batches; those without keys of the finder get them.
        finder: How ids become keys, such as `EmbeddingBags.key_layout`.

    Raises:
        ConfigError: There are no batches, or their sizes differ.
    """
    samples: list[Samples] = []
    keys: list[Keys] = []
    for batch in batches:
        for found in batch.keys_of(finder)[:1]:
            samples.append(SampleKeys.of(found).rows()[0])
            keys.append(found.keys)
    numbers, num_rows = _number(keys)
    return RowStream.of(
        ((starts, row_of[places]) for (starts, places), row_of in zip(samples, numbers, strict=True)), num_rows
    )


def _number(keys: list[Keys]) -> tuple[list[Int32s], int]:
    """int32 [U] for each batch, the rows of its keys, and the number of rows."""
    tables = np.concatenate([each.tables for each in keys]) if keys else np.empty(0, dtype=np.int32)
    ids = np.concatenate([each.ids for each in keys]) if keys else np.empty(0, dtype=np.int64)
    rows = np.empty(len(ids), dtype=np.int32)
    num_rows = 0
    for table in np.unique(tables):
        members = tables == table
        distinct, places = np.unique(ids[members], return_inverse=True)
        rows[members] = num_rows + places
        num_rows += len(distinct)
    ends = np.cumsum([len(each) for each in keys])
    return np.split(rows, ends[:-1]) if keys else [], num_rows
