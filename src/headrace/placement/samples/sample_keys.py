"""`SampleKeys`: which keys each sample of a batch reads, as a trainer tells it to the others.

Keys are sent once, and for each id the position of its key, feature by feature, so that features with few ids need few
bits. Features that repeat from row to row (an inverse-keyed group) are sent once per unique row::

    keys       items 7 9 5, users 1 2
    item       row 0: 7    row 1: 9         places  0 1      ->  rows of sample 0:  0 1 2 3   (7, 9, 5 and user 1)
    history    row 0: 9 5  row 1: none      places  1 2          rows of sample 1:  1 4
    user       row 0: 1    row 1: 2         places  3 4
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.embeddings.keys import Keys
from headrace.placement.samples.assignment import SampleRows
from headrace.placement.samples.packed_numbers import NumberReader, pack_numbers
from headrace.tensors import BatchKeys

__all__ = ["BagKeys", "SampleKeys"]

Bytes = npt.NDArray[np.uint8]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class BagKeys:
    """The ids of F features that share rows, as positions among the keys of a batch.

    Attributes:
        inverse: int32 [B], unique row of each sample; None if each sample has a row of its own.
        lengths: int64 [F, R], ids per feature and row.
        places: int64 [N], positions of their keys, feature by feature, row by row.
    """

    inverse: Int32s | None
    lengths: Int64s
    places: Int64s


@dataclass(frozen=True, eq=False)
class SampleKeys:
    """The keys that each sample of a batch reads.

    Attributes:
        keys: The unique keys of the batch, grouped by table; without counts.
        num_samples: Number of samples B.
        bags: Where they occur.
    """

    keys: Keys
    num_samples: int
    bags: tuple[BagKeys, ...]

    @classmethod
    def of(cls, found: BatchKeys) -> SampleKeys:
        """Those of a batch."""
        ids, bags = found.ids, []
        for group in ids.groups:
            numbers = ids.bag_starts[group.features][:, None] + np.arange(group.num_bags)
            firsts, lasts = ids.firsts[numbers], ids.lasts[numbers]
            places = np.empty(int((lasts - firsts).sum()), dtype=np.int64)
            _gather(firsts.reshape(-1), lasts.reshape(-1), found.inverse, places)
            bags.append(BagKeys(group.inverse, lasts - firsts, places))
        return cls(found.keys.unseen(), ids.stride, tuple(bags))

    def pack(self, num_tables: int) -> Bytes:
        """The bytes of all, for `unpack`."""
        sizes = np.bincount(self.keys.tables, minlength=num_tables)
        parts = [pack_numbers(sizes), pack_numbers(self.keys.ids, sizes)]
        forms = [(*bags.lengths.shape, bags.inverse is not None) for bags in self.bags]
        parts.append(pack_numbers(np.array([len(forms)])))
        parts.append(pack_numbers(np.array(forms, dtype=np.int64).reshape(-1)))
        for bags in self.bags:
            num_features, num_rows = bags.lengths.shape
            if bags.inverse is not None:
                parts.append(pack_numbers(bags.inverse))
            parts.append(pack_numbers(bags.lengths.reshape(-1), np.full(num_features, num_rows)))
            parts.append(pack_numbers(bags.places, bags.lengths.sum(axis=1)))
        return np.concatenate(parts)

    @classmethod
    def unpack(cls, reader: NumberReader, num_tables: int, num_samples: int) -> SampleKeys:
        """Read what `pack` returned, of a batch with so many samples."""
        sizes = reader.take_numbers(num_tables)
        ids = reader.take_numbers(sizes)
        tables = np.repeat(np.arange(num_tables, dtype=np.int32), sizes)
        (num_groups,) = reader.take_numbers(1).tolist()
        forms = reader.take_numbers(3 * num_groups).reshape(num_groups, 3).tolist()
        bags = []
        for num_features, num_rows, has_inverse in forms:
            inverse = reader.take_numbers(num_samples).astype(np.int32) if has_inverse else None
            lengths = reader.take_numbers(np.full(num_features, num_rows)).reshape(num_features, num_rows)
            bags.append(BagKeys(inverse, lengths, reader.take_numbers(lengths.sum(axis=1))))
        return cls(Keys(tables, ids, np.zeros(len(ids), dtype=np.int32)), num_samples, tuple(bags))

    def rows(self) -> tuple[SampleRows, Int32s]:
        """The rows of each sample, as positions among the keys, each once, and int32 [M], how often it has each."""
        bag_of, firsts, lasts, num_bags, end = [], [], [], 0, 0
        for bags in self.bags:
            num_features, num_rows = bags.lengths.shape
            rows = np.arange(self.num_samples) if bags.inverse is None else bags.inverse
            bag_of.append(num_bags + np.arange(num_features)[:, None] * num_rows + rows)
            ends = end + np.cumsum(bags.lengths.reshape(-1))
            firsts.append(ends - bags.lengths.reshape(-1))
            lasts.append(ends)
            num_bags, end = num_bags + num_features * num_rows, end + len(bags.places)
        bag_FB, first, last = (np.concatenate(each) for each in (bag_of, firsts, lasts))
        starts = np.zeros(self.num_samples + 1, dtype=np.int64)
        num_ids = int((last - first)[bag_FB].sum())
        values, times = np.empty(num_ids, dtype=np.int32), np.ones(num_ids, dtype=np.int32)
        places = np.concatenate([bags.places for bags in self.bags])
        newest = np.full(len(self.keys), -1, dtype=np.int64)
        _collect(bag_FB, first, last, places, newest, starts, values, times)
        return SampleRows(starts, values[: starts[-1]]), times[: starts[-1]]


@kernel()
def _gather(firsts: Int64s, lasts: Int64s, inverse: Int32s, places: Int64s) -> None:
    """The keys of some bags, one bag after the other."""
    count = 0
    for bag in range(len(firsts)):
        for position in range(firsts[bag], lasts[bag]):
            places[count] = inverse[position]
            count += 1


@kernel()
def _collect(
    bag_of: Int64s,
    firsts: Int64s,
    lasts: Int64s,
    places: Int64s,
    newest: Int64s,
    starts: Int64s,
    values: Int32s,
    times: Int32s,
) -> None:
    """The different keys of each sample, and how often it has each; `newest` is where each key was written last."""
    count = 0
    for sample in range(bag_of.shape[1]):
        start = count
        for feature in range(bag_of.shape[0]):
            bag = bag_of[feature, sample]
            for place in range(firsts[bag], lasts[bag]):
                key = places[place]
                if newest[key] >= start:
                    times[newest[key]] += 1
                else:
                    newest[key], values[count] = count, key
                    count += 1
        starts[sample + 1] = count
