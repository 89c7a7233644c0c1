"""Splits a batch into micro-batches by the rows that are not here, to train some while the rows of others come.

Without a future (`placement.window: 0`), the keys of a batch are known when its step begins, so rows that are missing
are waited for in the step. What needs none of them can run meanwhile::

    whole                   fetch rows ──────────────────► train all
    popular_first           fetch rows ──────────────────► train the others
                            train samples that miss none ─┘
    fewest_missing_first    fetch ─► fetch ──► fetch ────►
                                     train ─── train ───── train: those that miss fewest first, as their rows come

A split only decides the order of samples and where it is cut. The gradients of all micro-batches are one update, so
results depend on the split only by the order in which float32 numbers are added.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from headrace.compiling import kernel
from headrace.embeddings.keys import KeyLayout
from headrace.placement.resident_store import ResidentStore
from headrace.tensors import Batch, BatchKeys

__all__ = ["SPLITS", "FewestMissingFirst", "MicroBatches", "Split", "popular_first", "whole"]

MAX_PARTS = 4
BYTES_PER_PART = 400_000
"""Bytes that are missing for each micro-batch after the first. A link of 0.3 Gb/s brings so many in 11 ms, and a
micro-batch takes about 5 ms of its own (DLRM, 26 features, batches of 2,048 rows, one core)."""

Float64s = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

Split = Callable[[Float64s], Sequence[Int64s]]
"""A way to split a batch of B rows: given the bytes that each row misses, float64 [B], of which a key that k rows miss
has 1/k in each, returns the rows of each micro-batch, in the order of training; each row is in one of them, and none is
empty. It must depend on nothing else, so that a run can be repeated."""


def whole(missing_B: Float64s) -> Sequence[Int64s]:
    """All rows at once."""
    return [np.arange(len(missing_B))]


def popular_first(missing_B: Float64s) -> Sequence[Int64s]:
    """The rows that miss no key, then all others: Hotline (ISCA 2024; arXiv 2204.05436), without its accelerator."""
    parts = np.flatnonzero(missing_B == 0), np.flatnonzero(missing_B > 0)
    return [part for part in parts if len(part)]


@dataclass(frozen=True)
class FewestMissingFirst:
    """Rows in the order of the bytes that they miss, in several micro-batches if any are missing.

    This is Johnson's order for jobs that are fetched, and then trained in equal times (1954): the transfer is ahead of
    the work as far as possible. The first micro-batch has half the size of the others, because only its fetch cannot
    overlap with other work of the batch, or more if more rows miss nothing: these never wait.

    Attributes:
        bytes_per_part: Missing bytes for each micro-batch after the first.
        max_parts: Maximum number of micro-batches.
    """

    bytes_per_part: int = BYTES_PER_PART
    max_parts: int = MAX_PARTS

    def __call__(self, missing_B: Float64s) -> Sequence[Int64s]:
        """See `Split`."""
        order = np.argsort(missing_B, kind="stable")
        num_parts = min(self.max_parts, 1 + math.ceil(missing_B.sum() / self.bytes_per_part))
        size = len(order) / (num_parts - 0.5)
        first = len(order) if num_parts == 1 else max(math.ceil(size / 2), np.count_nonzero(missing_B == 0))
        others = np.array_split(order[first:], max(1, math.ceil((len(order) - first) / size)))
        return [np.sort(part) for part in (order[:first], *others) if len(part)]


SPLITS: dict[str, Split] = {
    "whole": whole,
    "popular_first": popular_first,
    "fewest_missing_first": FewestMissingFirst(),
}
"""Ways to split a batch, by their names in `placement.split`."""


class MicroBatches:
    """Fetches the rows of the next batch in parts, and gives each part of the batch when it is to be trained.

    Args:
        split: How batches are split.
        stores: The stores of a model that keep rows, each with the layout of its keys.
    """

    def __init__(self, split: Split, stores: Sequence[tuple[KeyLayout, ResidentStore]]) -> None:
        self._split = split
        self._stores = stores

    def of(self, batch: Batch) -> Iterator[Batch]:
        """The micro-batches of the next announced batch. Train each before taking the next; reads wait for its rows.

        Raises:
            ValueError: The split does not give every row once.
        """
        found = [batch.keys_of(layout)[0] for layout, _ in self._stores]
        missing = [store.place_next() for _, store in self._stores]
        missing_B = np.zeros(len(batch))
        for each, is_missing, (_, store) in zip(found, missing, self._stores, strict=True):
            missing_B += store.state_bytes * missing_of_rows(each, is_missing)
        parts = self._split(missing_B)
        check_parts(parts, len(batch))
        batches = [batch] if len(parts) == 1 else batch.micro_batches([torch.from_numpy(rows) for rows in parts])
        for is_missing, (layout, store) in zip(missing, self._stores, strict=True):
            store.fetch_next(parts_of_keys([part.keys_of(layout)[0] for part in batches], is_missing))
        for number, part in enumerate(batches):
            for _, store in self._stores:
                store.train_part(number)
            yield part


def check_parts(parts: Sequence[Int64s], num_rows: int) -> None:
    """Check that micro-batches have every row of a batch once.

    Raises:
        ValueError: They do not, or one is empty; the text names a row.
    """
    times = np.bincount(np.concatenate([np.empty(0, np.int64), *parts]), minlength=num_rows)
    if len(times) > num_rows:
        raise ValueError(f"split: a micro-batch has row {len(times) - 1}, expected rows from 0 to {num_rows - 1}")
    wrong = np.flatnonzero(times != 1)
    if len(wrong):
        raise ValueError(f"split: row {wrong[0]} is in {times[wrong[0]]} micro-batches, expected one")
    if not all(map(len, parts)):
        raise ValueError("split: a micro-batch has no rows, expected at least one")


def missing_of_rows(found: BatchKeys, is_missing: Bools) -> Float64s:
    """Keys that each row of a batch misses, float64 [B], where a key counts once in all rows together."""
    weights = np.where(is_missing, 1.0 / np.maximum(found.keys.counts, 1), 0.0)
    total = np.zeros(found.ids.stride)
    for group in found.ids.groups:
        bags = np.zeros(group.num_bags)
        starts = found.ids.bag_starts[group.features]
        _add_missing(found.ids.firsts, found.ids.lasts, starts, found.inverse, weights, bags)
        total += bags if group.inverse is None else bags[group.inverse]
    return total


def parts_of_keys(parts: Sequence[BatchKeys], is_missing: Bools) -> list[Int64s]:
    """For each micro-batch, the positions of the missing keys that no earlier one needs, ascending."""
    if len(parts) == 1:
        return [np.flatnonzero(is_missing)]
    first = np.full(len(is_missing), -1, dtype=np.int32)
    for number, part in enumerate(parts):
        _mark_first(part.ids.firsts, part.ids.lasts, part.inverse, is_missing, number, first)
    return [np.flatnonzero(first == number) for number in range(len(parts))]


@kernel()
def _add_missing(
    firsts: Int64s, lasts: Int64s, bag_starts: Int64s, inverse: Int32s, weights: Float64s, out: Float64s
) -> None:
    for start in bag_starts:
        for k in range(len(out)):
            for i in range(firsts[start + k], lasts[start + k]):
                out[k] += weights[inverse[i]]


@kernel()
def _mark_first(firsts: Int64s, lasts: Int64s, inverse: Int32s, is_missing: Bools, number: int, first: Int32s) -> None:
    for bag in range(len(firsts)):
        for i in range(firsts[bag], lasts[bag]):
            u = inverse[i]
            if is_missing[u] and first[u] < 0:
                first[u] = number
