"""`Part`: some features of a plan, computed together for the rows of one table of sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.errors import DataError
from headrace.features.buffers import BufferPool
from headrace.features.kernels.dense import ROW_BOUNDS, write_dense, write_one_hot
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
)
from headrace.features.kernels.sparse import count_ids, write_sparse
from headrace.features.kernels.unique import write_unique
from headrace.features.operator import Column, Kind
from headrace.features.spec import FeatureSpec
from headrace.features.steps import Step, build_steps
from headrace.tensors import InverseKeyedJaggedTensor, KeyedJaggedTensor

__all__ = ["Part"]

Ints = NDArray[np.int64]


class Part:
    """Features whose sources all have the same rows: those of the batch, or the unique rows of a group.

    Attributes:
        columns: Sources in the order in which `load` takes them.
        dense_names: Its columns of a dense matrix.
        sparse_keys: Its keys, those with weights last.
        num_weighted: How many keys have weights.
    """

    def __init__(
        self,
        specs: Sequence[FeatureSpec],
        kinds: Mapping[str, Kind],
        buffers: BufferPool,
        places: Mapping[str, int] | None = None,
    ) -> None:
        """Compile features; `places` as for `build_steps`."""
        self._steps = build_steps(specs, dict(kinds), places)
        self._buffers = buffers
        self.columns = self._steps.columns
        self.dense_names = self._steps.dense_names
        self.sparse_keys = self._steps.sparse_keys
        self.num_weighted = len(self._steps.weighted)

    def load(self, sources: Ints) -> Ints:
        """The table the other methods take: sources int64 [C, WIDTH] in the order of `columns`, then steps."""
        table = np.zeros((self._steps.num_sources, WIDTH), np.int64)
        table[: len(self.columns)] = sources
        return table

    def run_steps(self, table: Ints, row_ids: Ints) -> list[Column]:
        """Run the column operators; their results are sources from then on. Returns what must outlive their use."""
        held = []
        for step in self._steps.steps:
            columns = [
                self._column(table, step.inputs[at : at + 1], kind, row_ids) for at, kind in enumerate(step.kinds)
            ]
            result = _checked(step, step.operator.apply(columns, row_ids), len(row_ids))
            _describe(result, table[step.output])
            held.append(result)
        return held

    def dense(self, table: Ints, row_ids: Ints, out: NDArray[np.float32]) -> None:
        """Write the dense features into `out`, float32 [rows, D]."""
        for first_column, chains in self._steps.dense:
            self.write_dense(table, chains, row_ids, out, first_column, fill=True)
        for run in self._steps.one_hots:
            buckets = np.empty((len(row_ids), 1), np.float32)
            self.write_dense(table, run.chain, row_ids, buckets, 0, fill=False)
            write_one_hot(buckets, 0, out, run.first_column, run.num_columns)

    def write_dense(
        self, table: Ints, chains: Ints, row_ids: Ints, out: NDArray[np.float32], first_column: int, *, fill: bool
    ) -> None:
        """Write the results of some chains into columns of a matrix; with `fill`, 0 for null, else NaN."""
        program = self._steps.program
        write_dense(
            table,
            chains,
            program.ops,
            program.integers,
            program.floats,
            row_ids,
            ROW_BOUNDS,
            out,
            first_column,
            fill,
        )

    def sparse(self, table: Ints, row_ids: Ints) -> tuple[KeyedJaggedTensor, ...]:
        """The features without weights as one tensor, those with weights as another."""
        groups = []
        num_plain = len(self._steps.sparse)
        if num_plain:
            parts = self._write_sparse(table, self._steps.sparse, row_ids)
            values, lengths, offsets, _ = map(torch.from_numpy, parts)
            keys = self.sparse_keys[:num_plain]
            groups.append(KeyedJaggedTensor(keys, values, lengths, offsets, len(row_ids)))
        return (*groups, *self._weighted(table, row_ids))

    def unique_sparse(
        self, table: Ints, row_ids: Ints, inverse: NDArray[np.int32]
    ) -> tuple[InverseKeyedJaggedTensor, ...]:
        """The same for unique rows: as groups, which may be slices of a shared buffer where lists overlap.

        Args:
            table: Of the U unique rows.
            row_ids: int64 [U], any numbers.
            inverse: int32 [B], which unique row each row of the batch has.
        """
        lookup = torch.from_numpy(inverse)
        groups = []
        num_plain = len(self._steps.sparse)
        if num_plain:
            program, chains = self._steps.program, self._steps.sparse
            values = self._buffers.empty(int(count_ids(table, chains)), np.int64)
            lengths = self._buffers.empty(num_plain * len(row_ids), np.int32)
            places = self._buffers.empty(len(lengths) + 1, np.int64)
            num_ids, num_shared = write_unique(
                table,
                chains,
                self._steps.shareable,
                program.ops,
                program.integers,
                program.floats,
                row_ids,
                values,
                lengths,
                places,
            )
            offsets = torch.from_numpy(places)
            groups.append(
                InverseKeyedJaggedTensor(
                    self.sparse_keys[:num_plain],
                    torch.from_numpy(values[:num_ids]),
                    torch.from_numpy(lengths),
                    None if num_shared else offsets,
                    lookup,
                    len(row_ids),
                    starts=offsets[:-1] if num_shared else None,
                )
            )
        weighted = (InverseKeyedJaggedTensor.of_unique(group, lookup) for group in self._weighted(table, row_ids))
        return (*groups, *weighted)

    def _weighted(self, table: Ints, row_ids: Ints) -> tuple[KeyedJaggedTensor, ...]:
        """The features with weights, if there are any."""
        if not self.num_weighted:
            return ()
        keys = self.sparse_keys[len(self._steps.sparse) :]
        parts = self._write_sparse(table, self._steps.weighted, row_ids, keys=keys)
        values, lengths, offsets, weights = map(torch.from_numpy, parts)
        return (KeyedJaggedTensor(keys, values, lengths, offsets, len(row_ids), weights),)

    def _write_sparse(
        self, table: Ints, chains: Ints, row_ids: Ints, keys: Sequence[str] = ()
    ) -> tuple[Ints, NDArray[np.int32], Ints, NDArray[np.float32]]:
        """Values, lengths, offsets and weights of some chains; weights only where `keys`, their names, are given."""
        values = self._buffers.empty(int(count_ids(table, chains)), np.int64)
        weights = self._buffers.empty(len(values) if keys else 0, np.float32)
        lengths = self._buffers.empty(len(chains) * len(row_ids), np.int32)
        offsets = self._buffers.empty(len(lengths) + 1, np.int64)
        program = self._steps.program
        num_ids = write_sparse(
            table,
            chains,
            program.ops,
            program.integers,
            program.floats,
            row_ids,
            values,
            lengths,
            offsets,
            weights,
        )
        if num_ids < 0:
            feature, row = divmod(-1 - num_ids, len(row_ids))
            raise DataError(
                f"feature {keys[feature]}: row {row} of the batch (row id {row_ids[row]}) has more or fewer weights "
                "than ids"
            )
        return values[:num_ids], lengths, offsets, weights[:num_ids]

    def _column(self, table: Ints, chain: Ints, kind: Kind, row_ids: Ints) -> Column:
        values, _, offsets, _ = self._write_sparse(table, chain, row_ids)
        if kind.has_ids:
            return Column(values, offsets)
        return Column(values.view(np.float64), offsets if kind.is_list else None)


def _checked(step: Step, column: Column, num_rows: int) -> Column:
    """A column operator's result, if it is what the operator has promised, with arrays the kernels can read."""
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
    """Fill a row of the table of sources for a column that lies in numpy arrays."""
    row[:] = 0
    row[SHAPE] = SCALAR if column.offsets is None else LIST64
    row[LENGTH] = len(column)
    row[LIST_OFFSETS] = 0 if column.offsets is None else column.offsets.ctypes.data
    row[ELEMENT_TYPE] = I64 if column.values.dtype == np.int64 else F64
    row[VALUES] = column.values.ctypes.data
