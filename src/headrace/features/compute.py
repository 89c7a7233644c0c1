"""Computes the tensors of a record batch: read its columns, find equal rows, run the programs, assemble the tensors.

`compute` shows all phases in order; the functions below it follow in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from headrace.errors import DataError
from headrace.features.buffers import BufferPool
from headrace.features.compiled import CompiledPlan, Domain
from headrace.features.equal_rows import WORTH_KEEPING, GroupRows, combine, equal_rows, stored_rows
from headrace.features.kernels.dense import ROW_BOUNDS, write_dense, write_one_hot, write_row_ids
from headrace.features.kernels.gathering import gather_sources, gathered_bytes
from headrace.features.kernels.sources import (
    ELEMENT_TYPE,
    F64,
    I64,
    LENGTH,
    LIST64,
    LIST_OFFSETS,
    SCALAR,
    SHAPE,
    VALUES,
    WIDTH,
    read_batch,
)
from headrace.features.kernels.sparse import count_ids, write_sparse
from headrace.features.kernels.unique import count_expanded_ids, expand_rows, write_unique
from headrace.features.operator import Column, Kind
from headrace.features.program import Program, ProgramBuilder
from headrace.features.savings import Savings, bytes_of_batch, bytes_of_rows
from headrace.features.steps import Chains, Step, Steps
from headrace.tensors import Batch, InverseKeyedJaggedTensor, KeyedJaggedTensor

__all__ = ["compute"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Sparse = list[KeyedJaggedTensor | InverseKeyedJaggedTensor]

_NO_OPERATORS = ProgramBuilder().build()


def compute(plan: CompiledPlan, batch: pa.RecordBatch, buffers: BufferPool) -> tuple[Batch, Savings]:
    """Turn a record batch into tensors.

    Args:
        plan: A plan compiled for the schema of the batch.
        batch: The rows.
        buffers: Pool for result memory.

    Returns:
        The tensors, and statistics of deduplication.

    Raises:
        DataError: A value cannot be cast, or the numbers of weights and ids in a row differ.
    """
    # Read: cast columns where needed, then describe where each column is in memory. The descriptions are addresses into
    # `batch`, which must live until the end.
    batch = plan.binding.convert(batch)
    num_rows = batch.num_rows
    sources = read_batch(batch, plan.binding.layout)
    row_ids = np.empty(num_rows, np.int64)
    write_row_ids(sources, plan.row_id, row_ids)

    # Find equal rows: group columns store unique rows; rows of plain columns are compared.
    groups = stored_rows(batch, plan.stored)
    savings = bytes_of_rows(sources[: plan.num_columns], plan.which[: plan.num_columns], groups, num_rows)
    if plan.compared:
        groups = equal_rows(sources, plan.compared, num_rows, plan.order)

    # Run the programs, for unique rows or for all.
    dense: Floats = buffers.empty((num_rows, plan.num_dense), np.float32)
    sparse: Sparse = []
    for domain in plan.domains:
        run = _run_on_unique_rows if domain.groups else _run_on_all_rows
        found, computed = run(domain, groups, sources, row_ids, dense, buffers)
        sparse += found
        savings += computed
    labels, weights = _labels_and_weights(plan, groups, sources, row_ids)

    # Assemble: groups with an inverse come last.
    result = Batch(
        dense=torch.from_numpy(dense),
        sparse=tuple(sorted(sparse, key=lambda group: isinstance(group, InverseKeyedJaggedTensor))),
        labels=torch.from_numpy(labels),
        row_ids=torch.from_numpy(row_ids),
        weights=None if weights is None else torch.from_numpy(weights),
    )
    return result, savings + bytes_of_batch(result)


def _run_on_all_rows(
    domain: Domain, groups: Sequence[GroupRows], sources: Ints, row_ids: Ints, dense: Floats, buffers: BufferPool
) -> tuple[Sparse, Savings]:
    """Compute the features of a domain for each row; dense features are written to their columns of `dense`."""
    lines = {number: groups[number].rows[groups[number].inverse] for number in domain.gathered}
    table, held = _load(domain, sources, lines, row_ids, buffers)
    _write_dense(domain.steps, table, row_ids, dense)
    found = _keyed(domain.steps, table, row_ids, buffers)
    del held
    num_ids = sum(group.values.numel() for group in found)
    num_values = domain.steps.num_features * len(row_ids)
    return [*found], Savings(0, num_values, num_values, num_ids, num_ids)


def _run_on_unique_rows(
    domain: Domain, groups: Sequence[GroupRows], sources: Ints, row_ids: Ints, dense: Floats, buffers: BufferPool
) -> tuple[Sparse, Savings]:
    """Compute the features of a domain once per unique row; dense features are expanded into `dense`."""
    lines, inverse = combine([groups[number] for number in domain.groups])
    num_rows, num_unique = len(row_ids), len(lines[0])
    unique_ids = np.arange(num_unique)
    table, held = _load(domain, sources, dict(zip(domain.groups, lines, strict=True)), unique_ids, buffers)
    if domain.steps.dense_names:
        own: Floats = buffers.empty((num_unique, len(domain.steps.dense_names)), np.float32)
        _write_dense(domain.steps, table, unique_ids, own)
        expand_rows(own, inverse, domain.runs, dense)
    found = _inverse_keyed(domain.steps, table, unique_ids, inverse, buffers)
    del held
    num_features = domain.steps.num_features
    num_ids = sum(group.values.numel() for group in found)
    num_plain = sum(int(count_expanded_ids(group.lengths.numpy(), inverse, max(1, num_unique))) for group in found)
    computed = Savings(0, num_features * num_unique, num_features * num_rows, num_ids, num_plain)
    if num_rows >= WORTH_KEEPING * num_unique:
        return [*found], computed
    in_order = num_unique == num_rows and bool((inverse == np.arange(num_unique)).all())
    return [group.unique if in_order else group.expand() for group in found], computed


def _load(
    domain: Domain, sources: Ints, lines: Mapping[int, Ints], row_ids: Ints, buffers: BufferPool
) -> tuple[Ints, list[Any]]:
    """Build the source table of a domain's programs: its columns for its rows, and results of its column operators.

    Args:
        domain: The domain.
        sources: int64 [S, WIDTH], all sources of the plan.
        lines: int64 [U] per group, positions of the domain's rows in the group's columns.
        row_ids: int64 [U], ids of the domain's rows.
        buffers: Pool for result memory.

    Returns:
        int64 [T, WIDTH], and objects that must outlive its use.
    """
    steps = domain.steps
    table = np.zeros((steps.num_sources, WIDTH), np.int64)
    own = table[: len(domain.sources)]
    own[:] = sources[domain.sources]
    held: list[Any] = []
    if lines:
        rows = np.empty((1 + max(lines), len(row_ids)), np.int64)
        for number, line in lines.items():
            rows[number] = line
        held.append(_gather(own, domain.which, rows))
    for step in steps.steps:
        chains = [step.inputs[at : at + 1] for at in range(len(step.kinds))]
        columns = [
            _column(steps.program, table, chain, kind, row_ids, buffers)
            for chain, kind in zip(chains, step.kinds, strict=True)
        ]
        result = _checked(step, step.operator.apply(columns, row_ids), len(row_ids))
        _describe(result, table[step.output])
        held.append(result)
    return table, held


def _gather(sources: Ints, which: Ints, rows: Ints) -> NDArray[np.uint8]:
    """Restrict sources to some of their rows, see `gather_sources`; returns memory that must outlive their use."""
    arena = np.empty(int(gathered_bytes(sources, which, rows)), np.uint8)
    gather_sources(sources, which, rows, arena)
    return arena


def _column(program: Program, table: Ints, chain: Chains, kind: Kind, row_ids: Ints, buffers: BufferPool) -> Column:
    """An input of a column operator."""
    values, _, offsets, _ = _write_sparse(program, table, chain, row_ids, buffers)
    if kind.has_ids:
        return Column(values, offsets)
    return Column(values.view(np.float64), offsets if kind.is_list else None)


def _checked(step: Step, column: Column, num_rows: int) -> Column:
    """Check that a column operator's result has the promised kind; returns it with arrays that the kernels can read."""
    ids = step.returns.has_ids
    wanted = np.dtype(np.int64 if ids else np.float64)
    if len(column) != num_rows or (column.offsets is not None) != step.returns.is_list:
        shape = "without offsets" if column.offsets is None else "with offsets"
        raise ValueError(
            f"{step.where}: returned {len(column)} rows {shape}, expected {num_rows} rows, {step.returns.value}"
        )
    if column.values.dtype != wanted:
        raise TypeError(f"{step.where}: returned values of {column.values.dtype}, expected {wanted}")
    offsets = None if column.offsets is None else np.ascontiguousarray(column.offsets, dtype=np.int64)
    return Column(np.ascontiguousarray(column.values), offsets)


def _describe(column: Column, row: Ints) -> None:
    """Fill a row of the source table for a column in numpy arrays."""
    row[:] = 0
    row[SHAPE] = SCALAR if column.offsets is None else LIST64
    row[LENGTH] = len(column)
    row[LIST_OFFSETS] = 0 if column.offsets is None else column.offsets.ctypes.data
    row[ELEMENT_TYPE] = I64 if column.values.dtype == np.int64 else F64
    row[VALUES] = column.values.ctypes.data


def _write_dense(steps: Steps, table: Ints, row_ids: Ints, out: Floats) -> None:
    """Write the dense features of a domain into `out`, float32 [rows, D]."""
    for first_column, chains in steps.dense:
        _write_chains(steps.program, table, chains, row_ids, out, first_column, fill=True)
    for one_hot in steps.one_hots:
        buckets = np.empty((len(row_ids), 1), np.float32)
        _write_chains(steps.program, table, one_hot.chain, row_ids, buckets)
        write_one_hot(buckets, 0, out, one_hot.first_column, one_hot.num_columns)


def _write_chains(
    program: Program,
    table: Ints,
    chains: Chains,
    row_ids: Ints,
    out: Floats,
    first_column: int = 0,
    *,
    fill: bool = False,
) -> None:
    """Write the results of chains into columns of a matrix; null becomes 0 with `fill`, else NaN."""
    ops, integers, floats = program.ops, program.integers, program.floats
    write_dense(table, chains, ops, integers, floats, row_ids, ROW_BOUNDS, out, first_column, fill)


def _keyed(steps: Steps, table: Ints, row_ids: Ints, buffers: BufferPool) -> list[KeyedJaggedTensor]:
    """The id features without weights as one tensor, and those with weights as another."""
    num_plain, found = len(steps.sparse), []
    if num_plain:
        parts = _write_sparse(steps.program, table, steps.sparse, row_ids, buffers)
        values, lengths, offsets, _ = map(torch.from_numpy, parts)
        found.append(KeyedJaggedTensor(steps.sparse_keys[:num_plain], values, lengths, offsets, len(row_ids)))
    return [*found, *_weighted(steps, table, row_ids, buffers)]


def _inverse_keyed(
    steps: Steps, table: Ints, row_ids: Ints, inverse: NDArray[np.int32], buffers: BufferPool
) -> list[InverseKeyedJaggedTensor]:
    """The id features for unique rows, as groups; overlapping lists may be slices of a shared buffer.

    Args:
        steps: Programs of the domain.
        table: Source table of the U unique rows.
        row_ids: int64 [U], arbitrary numbers.
        inverse: int32 [B], the unique row of each row of the batch.
        buffers: Pool for result memory.
    """
    lookup, num_plain = torch.from_numpy(inverse), len(steps.sparse)
    found = []
    if num_plain:
        values = buffers.empty(int(count_ids(table, steps.sparse)), np.int64)
        lengths = buffers.empty(num_plain * len(row_ids), np.int32)
        places = buffers.empty(len(lengths) + 1, np.int64)
        ops, integers, floats = steps.program.ops, steps.program.integers, steps.program.floats
        num_ids, num_shared = write_unique(
            table, steps.sparse, steps.shareable, ops, integers, floats, row_ids, values, lengths, places
        )
        offsets = torch.from_numpy(places)
        found.append(
            InverseKeyedJaggedTensor(
                steps.sparse_keys[:num_plain],
                torch.from_numpy(values[:num_ids]),
                torch.from_numpy(lengths),
                None if num_shared else offsets,
                lookup,
                len(row_ids),
                starts=offsets[:-1] if num_shared else None,
            )
        )
    weighted = _weighted(steps, table, row_ids, buffers)
    return [*found, *(InverseKeyedJaggedTensor.of_unique(group, lookup) for group in weighted)]


def _weighted(steps: Steps, table: Ints, row_ids: Ints, buffers: BufferPool) -> list[KeyedJaggedTensor]:
    """The id features with weights as one tensor, if any."""
    if not len(steps.weighted):
        return []
    keys = steps.sparse_keys[len(steps.sparse) :]
    parts = _write_sparse(steps.program, table, steps.weighted, row_ids, buffers, weighted=keys)
    values, lengths, offsets, weights = map(torch.from_numpy, parts)
    return [KeyedJaggedTensor(keys, values, lengths, offsets, len(row_ids), weights)]


def _write_sparse(
    program: Program, table: Ints, chains: Chains, row_ids: Ints, buffers: BufferPool, weighted: Sequence[str] = ()
) -> tuple[Ints, NDArray[np.int32], Ints, Floats]:
    """Values, lengths, offsets and weights of chains; weights only for the keys named in `weighted`.

    Raises:
        DataError: A row has a different number of weights than ids.
    """
    values = buffers.empty(int(count_ids(table, chains)), np.int64)
    weights = buffers.empty(len(values) if weighted else 0, np.float32)
    lengths = buffers.empty(len(chains) * len(row_ids), np.int32)
    offsets = buffers.empty(len(lengths) + 1, np.int64)
    ops, integers, floats = program.ops, program.integers, program.floats
    num_ids = write_sparse(table, chains, ops, integers, floats, row_ids, values, lengths, offsets, weights)
    if num_ids < 0:
        feature, row = divmod(-1 - num_ids, len(row_ids))
        raise DataError(
            f"feature {weighted[feature]}: row {row} of the batch (row id {row_ids[row]}) has more or fewer weights "
            "than ids"
        )
    return values[:num_ids], lengths, offsets, weights[:num_ids]


def _labels_and_weights(
    plan: CompiledPlan, groups: Sequence[GroupRows], sources: Ints, row_ids: Ints
) -> tuple[Floats, Floats | None]:
    """Labels, float32 [B, L], and example weights, float32 [B] or None."""
    first, last, num_labels = plan.num_columns, len(plan.which), plan.num_labels
    arena = None
    if (plan.which[first:] >= 0).any():
        rows = np.stack([group.rows[group.inverse] for group in groups])
        arena = _gather(sources[first:last], plan.which[first:], rows)
    labels = np.empty((len(row_ids), num_labels), np.float32)
    _write_chains(_NO_OPERATORS, sources, plan.targets[:num_labels], row_ids, labels)
    weights = None
    if len(plan.targets) > num_labels:
        column = np.empty((len(row_ids), 1), np.float32)
        _write_chains(_NO_OPERATORS, sources, plan.targets[num_labels:], row_ids, column)
        weights = column.reshape(-1)
    del arena
    return labels, weights
