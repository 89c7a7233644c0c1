"""`stream_of_batches`: a row stream from batches of features, with the keys that training would use."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from headrace.compiling import kernel
from headrace.placement.replay.stream import Int32s, Int64s, RowStream, Samples
from headrace.tensors import Batch, BatchKeys, KeyFinder, Keys

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
            samples.append(_samples_of(found))
            keys.append(found.keys)
    numbers, num_rows = _number(keys)
    return RowStream.of(
        ((starts, row_of[places]) for (starts, places), row_of in zip(samples, numbers, strict=True)), num_rows
    )


def _samples_of(found: BatchKeys) -> Samples:
    """For each sample, the positions of its keys in the batch, each once."""
    ids = found.ids
    bag_of = np.empty((len(found.feature_names), ids.stride), dtype=np.int64)
    for group in ids.groups:
        row = np.arange(ids.stride) if group.inverse is None else group.inverse
        bag_of[group.features] = ids.bag_starts[group.features, None] + row
    stamps = np.full(len(found.keys), -1, dtype=np.int64)
    counts = np.zeros(ids.stride + 1, dtype=np.int64)
    _collect(bag_of, ids.firsts, ids.lasts, found.inverse, stamps, counts, np.empty(0, dtype=np.int32))
    starts = np.cumsum(counts)
    places = np.empty(starts[-1], dtype=np.int32)
    stamps[:] = -1
    _collect(bag_of, ids.firsts, ids.lasts, found.inverse, stamps, counts, places)
    return starts, places


@kernel()
def _collect(
    bag_of: Int64s, firsts: Int64s, lasts: Int64s, inverse: Int32s, stamps: Int64s, counts: Int64s, places: Int32s
) -> None:
    """Count the different keys of each sample, or write them to `places` if it has elements."""
    count = 0
    for sample in range(bag_of.shape[1]):
        before = count
        for feature in range(bag_of.shape[0]):
            bag = bag_of[feature, sample]
            for place in range(firsts[bag], lasts[bag]):
                key = inverse[place]
                if stamps[key] != sample:
                    stamps[key] = sample
                    if len(places):
                        places[count] = key
                    count += 1
        counts[sample + 1] = count - before


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
