"""`Savings`: measures how much work and memory deduplication has saved."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.features.equal_rows import GroupRows
from headrace.features.kernels.unique import count_expanded_ids, count_row_bytes
from headrace.tensors import Batch, InverseKeyedJaggedTensor, KeyedJaggedTensor

__all__ = ["Savings", "Tally", "bytes_of_batch", "bytes_of_rows"]

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Savings:
    """Work and memory of a plan, with and without deduplication.

    Attributes:
        num_rows: Rows in all batches.
        num_values: Feature values computed: features times (unique) rows.
        num_plain_values: Feature values without deduplication: features times rows.
        num_ids: Ids written into batches.
        num_plain_ids: Ids of all rows without deduplication.
        num_bytes: Bytes of the batches.
        num_plain_bytes: Bytes of the batches without deduplication.
        num_row_bytes: Bytes of the input columns that the plan reads: unique rows and indices of groups.
        num_plain_row_bytes: Bytes of the same columns as plain rows.
    """

    num_rows: int = 0
    num_values: int = 0
    num_plain_values: int = 0
    num_ids: int = 0
    num_plain_ids: int = 0
    num_bytes: int = 0
    num_plain_bytes: int = 0
    num_row_bytes: int = 0
    num_plain_row_bytes: int = 0

    def __add__(self, more: Savings) -> Savings:
        return self._joined(more, operator.add)

    def __sub__(self, before: Savings) -> Savings:
        return self._joined(before, operator.sub)

    def _joined(self, other: Savings, join: Callable[[int, int], int]) -> Savings:
        # Called several times per batch: `dataclasses.astuple` deep-copies every field, which takes 0.1 ms.
        return Savings(*map(join, vars(self).values(), vars(other).values()))

    @property
    def values_factor(self) -> float:
        """Feature values delivered per value computed."""
        return self.num_plain_values / self.num_values if self.num_values else 1.0

    @property
    def ids_factor(self) -> float:
        """Ids of all rows per id written."""
        return self.num_plain_ids / self.num_ids if self.num_ids else 1.0


class Tally:
    """Sums up the savings of a plan and of plans derived from it. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._savings = Savings()

    def add(self, more: Savings) -> None:
        """Add savings."""
        with self._lock:
            self._savings += more

    @property
    def savings(self) -> Savings:
        """The sum so far."""
        with self._lock:
            return self._savings

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return Tally, ()


def bytes_of_rows(
    sources: NDArray[np.int64], which: NDArray[np.int64], groups: Sequence[GroupRows], num_rows: int
) -> Savings:
    """Bytes of a batch's input columns, as stored and as plain rows.

    Args:
        sources: int64 [S, WIDTH], see `headrace.features.kernels.sources`.
        which: int64 [S], group of each source; -1 for plain columns.
        groups: Unique rows of the group columns; empty for plain rows.
        num_rows: Rows B.
    """
    rows, uses = np.zeros((2, len(groups), num_rows), np.int64)
    counts = np.array([len(group.rows) for group in groups], np.int64)
    for number, group in enumerate(groups):
        rows[number, : counts[number]] = group.rows
        uses[number, : counts[number]] = np.bincount(group.inverse, minlength=counts[number])
    held, plain = count_row_bytes(sources, which, rows, uses, counts, num_rows)
    return Savings(num_row_bytes=int(held), num_plain_row_bytes=int(plain))


def bytes_of_batch(batch: Batch) -> Savings:
    """Ids and bytes of a batch of tensors, with and without deduplication."""
    num_bytes = batch.num_bytes
    saved = sum(_expanded_bytes(group) - group.num_bytes for group in batch.sparse)
    return Savings(len(batch), num_bytes=num_bytes, num_plain_bytes=num_bytes + saved)


def _expanded_bytes(group: KeyedJaggedTensor | InverseKeyedJaggedTensor) -> int:
    """Bytes of a group without deduplication."""
    if isinstance(group, KeyedJaggedTensor):
        return group.num_bytes
    inverse, num_unique = group.inverse_lookup.numpy(), max(1, group.unique_stride)
    num_ids = int(count_expanded_ids(group.lengths.numpy(), inverse, num_unique))
    return num_ids * (8 if group.weights is None else 12) + 12 * len(group.keys) * group.stride + 8
