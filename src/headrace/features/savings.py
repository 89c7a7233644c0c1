"""How much a plan has really saved by computing once what repeats."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
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
    """What a plan computed, against what it would have without deduplication.

    Attributes:
        num_rows: Rows of the batches.
        num_values: Features times the rows they were computed for.
        num_plain_values: Features times rows.
        num_ids: Ids written into batches.
        num_plain_ids: Ids that all rows have.
        num_bytes: Of the batches.
        num_plain_bytes: That batches of plain rows would have.
        num_row_bytes: Of the columns the plan reads in the rows it was given: unique rows and indices of groups.
        num_plain_row_bytes: That the same columns have in plain rows.
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
        # Once a batch and group of features: `dataclasses.astuple` copies every field deeply, at 0.1 ms a call.
        return Savings(*(join(getattr(self, name), getattr(other, name)) for name in _NAMES))

    @property
    def values_factor(self) -> float:
        """Features delivered per feature computed."""
        return self.num_plain_values / self.num_values if self.num_values else 1.0

    @property
    def ids_factor(self) -> float:
        """Ids of all rows per id written."""
        return self.num_plain_ids / self.num_ids if self.num_ids else 1.0


_NAMES = tuple(each.name for each in fields(Savings))


class Tally:
    """Adds up savings of a plan and of the plans made from it; any thread may add."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._savings = Savings()

    def add(self, more: Savings) -> None:
        """Count some of what was computed."""
        with self._lock:
            self._savings += more

    @property
    def savings(self) -> Savings:
        """All so far."""
        with self._lock:
            return self._savings

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return Tally, ()


def bytes_of_rows(
    sources: NDArray[np.int64], which: NDArray[np.int64], groups: Sequence[GroupRows], num_rows: int
) -> Savings:
    """What the columns of a batch of rows hold, and would hold in plain rows.

    Args:
        sources: int64 [S, WIDTH], see `headrace.features.kernels.sources`.
        which: int64 [S], the group of each; -1 for plain columns.
        groups: Unique rows of the group columns; none for plain rows.
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
    """What a batch of tensors holds, and would hold with lists of its own for each row."""
    num_bytes = batch.num_bytes
    saved = sum(_expanded_bytes(group) - group.num_bytes for group in batch.sparse)
    return Savings(len(batch), num_bytes=num_bytes, num_plain_bytes=num_bytes + saved)


def _expanded_bytes(group: KeyedJaggedTensor | InverseKeyedJaggedTensor) -> int:
    """Bytes of a group for all rows, each with lists of its own."""
    if isinstance(group, KeyedJaggedTensor):
        return group.num_bytes
    inverse, num_unique = group.inverse_lookup.numpy(), max(1, group.unique_stride)
    num_ids = int(count_expanded_ids(group.lengths.numpy(), inverse, num_unique))
    return num_ids * (8 if group.weights is None else 12) + 12 * len(group.keys) * group.stride + 8
