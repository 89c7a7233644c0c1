"""Computing a plan's features once per unique row, from group columns or from rows found to be equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.features.buffers import BufferPool
from headrace.features.domains import Domain, GroupRows, combine
from headrace.features.grouping import ColumnUse
from headrace.features.kernels.comparing import (
    count_elements,
    hash_rows,
    mark_changes,
    number_hashes,
    number_runs,
    number_used,
)
from headrace.features.kernels.unique import count_expanded_ids, count_row_bytes, expand_rows
from headrace.features.operator import Kind
from headrace.features.realised import Realised, Savings
from headrace.logs.groups import group_of
from headrace.tensors import InverseKeyedJaggedTensor, KeyedJaggedTensor

__all__ = ["compute", "equal_rows", "measure_columns", "row_bytes", "stored_rows"]

_WORTH_KEEPING = 1.2
"""Rows per unique row below which a group is expanded at once: less than the inverse costs those who come after."""

Ints = NDArray[np.int64]
Sparse = tuple[KeyedJaggedTensor | InverseKeyedJaggedTensor, ...]


def stored_rows(batch: pa.RecordBatch, positions: Sequence[int]) -> list[GroupRows]:
    """The unique rows that a batch has of its group columns, which lie at some positions in it."""
    found = []
    for position in positions:
        indices = group_of(batch.column(position)).inverse
        used, inverse = np.empty(len(indices), np.int64), np.empty(len(indices), np.int32)
        count = number_used(indices, used, inverse)
        found.append(GroupRows(used[:count], inverse))
    return found


def row_bytes(sources: Ints, which: Ints, groups: Sequence[GroupRows], num_rows: int) -> Savings:
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


def equal_rows(
    sources: Ints, groups: Sequence[Ints], num_rows: int, order: Literal["adjacent", "any"]
) -> list[GroupRows]:
    """Unique rows of groups of plain columns.

    Args:
        sources: int64 [S, WIDTH], see `headrace.features.kernels.sources`.
        groups: Numbers of the sources in each group.
        num_rows: Rows B.
        order: Compare each row with the one before it, or hash rows.
    """
    found = []
    for columns in groups:
        changed, inverse = np.zeros(num_rows, np.uint8), np.empty(num_rows, np.int32)
        first_rows = np.empty(num_rows, np.int64)
        if order == "adjacent":
            mark_changes(sources, columns, np.empty(0, np.int64), changed)
            count = number_runs(changed, inverse, first_rows)
        else:
            codes, others = np.zeros(num_rows, np.uint64), np.empty(num_rows, np.int64)
            hash_rows(sources, columns, codes)
            count = number_hashes(codes, inverse, first_rows, others)
            mark_changes(sources, columns, others, changed)
            if changed.any():  # two rows that differ have one hash
                strangers = np.flatnonzero(changed)
                first_rows[count : count + len(strangers)] = strangers
                inverse[strangers] = np.arange(count, count + len(strangers), dtype=np.int32)
                count += len(strangers)
        if num_rows < _WORTH_KEEPING * count:
            found.append(GroupRows(np.arange(num_rows), np.arange(num_rows, dtype=np.int32)))
        else:
            found.append(GroupRows(first_rows[:count], inverse))
    return found


def compute(
    domains: Sequence[Domain],
    groups: Sequence[GroupRows],
    sources: Ints,
    row_ids: Ints,
    num_dense: int,
    buffers: BufferPool,
    realised: Realised,
) -> tuple[NDArray[np.float32], Sparse]:
    """Compute all features.

    Args:
        domains: Of the plan.
        groups: The unique rows of each of its groups.
        sources: int64 [S, WIDTH], all of its columns.
        row_ids: int64 [B].
        num_dense: Columns of the dense matrix.
        buffers: Memory for results.
        realised: Counts what was computed.
    """
    dense: NDArray[np.float32] = buffers.empty((len(row_ids), num_dense), np.float32)
    sparse: list[KeyedJaggedTensor | InverseKeyedJaggedTensor] = []
    for domain in domains:
        arena: list[NDArray[np.uint8]] = []
        if domain.groups:
            sparse += _compute_unique(domain, groups, sources, dense, arena, buffers, realised)
            continue
        rows = np.empty((len(groups), len(row_ids)), np.int64)
        for number in set(domain.which.tolist()) - {-1}:
            rows[number] = groups[number].rows[groups[number].inverse]
        table = domain.table(sources, rows, arena)
        held = domain.part.run_steps(table, row_ids)
        domain.part.dense(table, row_ids, dense)
        plain = domain.part.sparse(table, row_ids)
        del held
        num_ids = sum(group.values.numel() for group in plain)
        realised.add(Savings(0, _values(domain, len(row_ids)), _values(domain, len(row_ids)), num_ids, num_ids))
        sparse += plain
    return dense, tuple(sorted(sparse, key=lambda group: isinstance(group, InverseKeyedJaggedTensor)))


def _compute_unique(
    domain: Domain,
    groups: Sequence[GroupRows],
    sources: Ints,
    dense: NDArray[np.float32],
    arena: list[NDArray[np.uint8]],
    buffers: BufferPool,
    realised: Realised,
) -> list[KeyedJaggedTensor | InverseKeyedJaggedTensor]:
    """Compute the features of one domain of unique rows; dense ones are expanded into their columns of `dense`."""
    lines, inverse = combine([groups[number] for number in domain.groups])
    num_unique = len(lines[0])
    rows = np.empty((len(groups), num_unique), np.int64)
    for number, line in zip(domain.groups, lines, strict=True):
        rows[number] = line
    table = domain.table(sources, rows, arena)
    unique_ids = np.arange(num_unique)
    held = domain.part.run_steps(table, unique_ids)
    if domain.part.dense_names:
        own: NDArray[np.float32] = buffers.empty((num_unique, len(domain.part.dense_names)), np.float32)
        domain.part.dense(table, unique_ids, own)
        expand_rows(own, inverse, domain.runs, dense)
    found = domain.part.unique_sparse(table, unique_ids, inverse)
    del held
    num_ids = sum(group.values.numel() for group in found)
    num_plain = sum(int(count_expanded_ids(group.lengths.numpy(), inverse, max(1, num_unique))) for group in found)
    realised.add(Savings(0, _values(domain, num_unique), _values(domain, len(inverse)), num_ids, num_plain))
    if len(inverse) >= _WORTH_KEEPING * num_unique:
        return list(found)
    in_order = num_unique == len(inverse) and bool((inverse == np.arange(num_unique)).all())
    return [group.unique if in_order else group.expand() for group in found]


def _values(domain: Domain, num_rows: int) -> int:
    """Features times rows."""
    return num_rows * (len(domain.part.dense_names) + len(domain.part.sparse_keys))


def measure_columns(
    names: Sequence[str], numbers: Sequence[int], kinds: Mapping[str, Kind], sources: Ints, num_rows: int
) -> list[ColumnUse]:
    """How often columns change from one row to the next, and what they weigh; for `choose_groups`.

    Args:
        names: Of the columns.
        numbers: Of their sources.
        kinds: What each column holds.
        sources: int64 [S, WIDTH].
        num_rows: Rows B.
    """
    uses = []
    for name, number in zip(names, numbers, strict=True):
        changed = np.zeros(num_rows, np.uint8)
        mark_changes(sources, np.array([number], np.int64), np.empty(0, np.int64), changed)
        changed[:1] = 1
        if kinds[name] is Kind.NUMBER:
            size, kept = 8.0, 4.0
        else:
            width = 8.0 if kinds[name].has_ids else 4.0
            size, kept = width * count_elements(sources[number], num_rows) / max(1, num_rows) + 4.0, 0.0
        uses.append(ColumnUse(name, changed.astype(np.bool_), size, kept))
    return uses
