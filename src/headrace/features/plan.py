"""`FeaturePlan`: record batches in, batches of tensors out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from headrace.errors import DataError
from headrace.features.binding import Binding, bind
from headrace.features.buffers import BufferPool
from headrace.features.kernels.dense import ROW_BOUNDS, write_dense, write_one_hot, write_row_ids
from headrace.features.kernels.sparse import count_ids, write_sparse
from headrace.features.operator import Column, Kind
from headrace.features.sources import (
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
from headrace.features.spec import FeatureSpec, column_kinds, default_specs, read_specs
from headrace.features.steps import Step, build_steps
from headrace.logs.pieces import ROW_ID
from headrace.logs.schema import Schema
from headrace.tensors import Batch, KeyedJaggedTensor

__all__ = ["FeaturePlan"]

_GUESSED_LIST_LENGTH = 20  # ids a row before any batch was seen: the mean of Meta's public workloads
_MARGIN = 1.1  # of an estimate over the largest batch seen


class FeaturePlan:
    """Turns rows of logs into tensors: compiled once, applied to any number of batches from any number of threads.

    Consecutive operators on a column run block by block in one pass that reads the column once and writes the result
    where it belongs in the batch; no operator, and no join of columns, makes a copy of its own.

    Attributes:
        schema: Of the logs.
        specs: The features.
        columns: Source columns it reads, each once: features, labels, weight and row id.
        dense_names: Columns of `Batch.dense`.
        sparse_keys: Keys of `Batch.sparse`: of the group without weights, then of the one with weights.
        label_names: Columns of `Batch.labels`.
    """

    def __init__(self, specs: Sequence[FeatureSpec], schema: Schema, *, with_labels: bool = True) -> None:
        self.schema = schema
        self.specs = tuple(specs)
        self._steps = build_steps(self.specs, column_kinds(schema))
        self._with_labels = with_labels
        self.dense_names = self._steps.dense_names
        self.sparse_keys = self._steps.sparse_keys
        self.label_names = tuple(label.name for label in schema.labels) if with_labels else ()
        self._weight = schema.weight if with_labels else None
        extra = [*self.label_names, *([self._weight] if self._weight else [])]
        # Sources by number: the features' columns, results of steps, labels and weight; the row id comes last.
        self._sources = [*self._steps.columns, *([None] * len(self._steps.steps)), *extra]
        self.columns = tuple(dict.fromkeys([*self._steps.columns, *extra, ROW_ID]))
        plain = np.array([[self._steps.num_sources + at, 0, 0, 0, 0, -1] for at in range(len(extra))], np.int64)
        self._plain_chains = plain.reshape(-1, 6)
        self._binding: Binding | None = None
        self._buffers = BufferPool()
        self._bytes_per_row = self._guess_bytes_per_row()

    @classmethod
    def from_config(cls, config: Any, schema: Schema) -> FeaturePlan:
        """A plan from a job file's `features:` section; the default plan for None.

        Raises:
            ConfigError: Names feature, operator and key, what was given and what was expected.
        """
        return cls.default(schema) if config is None else cls(read_specs(config, schema), schema)

    @classmethod
    def default(cls, schema: Schema) -> FeaturePlan:
        """A plan over all columns: numbers filled with 0, then `log1p`; ids as they are; the first 50 of lists."""
        return cls(default_specs(schema), schema)

    def without_labels(self) -> FeaturePlan:
        """The same features for rows to score: reads neither labels nor weights, and `Batch.labels` is [B, 0]."""
        return FeaturePlan(self.specs, self.schema, with_labels=False)

    def estimate_bytes(self, num_rows: int) -> int:
        """Bytes of a batch of that many rows: from list lengths seen so far, a guess before the first batch."""
        return int(self._bytes_per_row * num_rows) + 8

    def apply(self, batch: pa.RecordBatch) -> Batch:
        """Compute a batch of tensors.

        Args:
            batch: Rows with the plan's `columns` in any order, others ignored. Without `__row_id`, rows are counted
                from 0.

        Raises:
            DataError: If a column is missing or has a type that does not suit, or a row has not as many weights as ids.
        """
        binding = self._bind(batch.schema)
        batch = binding.convert(batch)
        table = np.empty((len(binding.layout), WIDTH), np.int64)
        read_batch(batch, binding.layout, table)
        row_ids = np.empty(batch.num_rows, np.int64)
        has_row_ids = len(binding.layout) > len(self._sources)
        write_row_ids(table, len(self._sources) if has_row_ids else -1, row_ids)
        labels, weights = self._labels_and_weights(table, row_ids)
        held = self._run_steps(table, row_ids)
        dense = self._dense(table, row_ids)
        sparse = self._sparse(table, row_ids)
        del held
        result = Batch(
            dense=torch.from_numpy(dense),
            sparse=sparse,
            labels=torch.from_numpy(labels),
            row_ids=torch.from_numpy(row_ids),
            weights=None if weights is None else torch.from_numpy(weights.reshape(-1)),
        )
        if len(row_ids):
            self._bytes_per_row = max(self._bytes_per_row, _MARGIN * result.num_bytes / len(row_ids))
        return result

    def _bind(self, schema: pa.Schema) -> Binding:
        binding = self._binding
        if binding is None or not binding.schema.equals(schema):
            plain = [name for name in self._sources[self._steps.num_sources :] if name is not None]
            kinds = column_kinds(self.schema) | dict.fromkeys(plain, Kind.NUMBER)
            columns = [*self._sources, ROW_ID] if ROW_ID in schema.names else self._sources
            timestamp = self.schema.timestamp
            units = {} if timestamp is None else {timestamp.name: timestamp.unit}
            binding = self._binding = bind(schema, columns, kinds | {ROW_ID: Kind.ID}, units)
        return binding

    def _labels_and_weights(
        self, table: NDArray[np.int64], row_ids: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        num_labels = len(self.label_names)
        labels = np.empty((len(row_ids), num_labels), np.float32)
        self._write_dense(table, self._plain_chains[:num_labels], row_ids, labels, 0, fill=False)
        if self._weight is None:
            return labels, None
        weights = np.empty((len(row_ids), 1), np.float32)
        self._write_dense(table, self._plain_chains[num_labels:], row_ids, weights, 0, fill=False)
        return labels, weights

    def _dense(self, table: NDArray[np.int64], row_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        out = self._buffers.empty((len(row_ids), len(self.dense_names)), np.float32)
        for first_column, chains in self._steps.dense:
            self._write_dense(table, chains, row_ids, out, first_column, fill=True)
        for run in self._steps.one_hots:
            buckets = np.empty((len(row_ids), 1), np.float32)
            self._write_dense(table, run.chain, row_ids, buckets, 0, fill=False)
            write_one_hot(buckets, 0, out, run.first_column, run.num_columns)
        return out

    def _write_dense(
        self,
        table: NDArray[np.int64],
        chains: NDArray[np.int64],
        row_ids: NDArray[np.int64],
        out: NDArray[np.float32],
        first_column: int,
        *,
        fill: bool,
    ) -> None:
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

    def _sparse(self, table: NDArray[np.int64], row_ids: NDArray[np.int64]) -> tuple[KeyedJaggedTensor, ...]:
        """The features without weights as one group, those with weights as another."""
        groups = []
        num_plain = len(self._steps.sparse)
        if num_plain:
            parts = self._write_sparse(table, self._steps.sparse, row_ids)
            values, lengths, offsets, _ = map(torch.from_numpy, parts)
            keys = self.sparse_keys[:num_plain]
            groups.append(KeyedJaggedTensor(keys, values, lengths, offsets, len(row_ids)))
        if len(self._steps.weighted):
            parts = self._write_sparse(table, self._steps.weighted, row_ids, keys=self.sparse_keys[num_plain:])
            values, lengths, offsets, weights = map(torch.from_numpy, parts)
            keys = self.sparse_keys[num_plain:]
            groups.append(KeyedJaggedTensor(keys, values, lengths, offsets, len(row_ids), weights))
        return tuple(groups)

    def _write_sparse(
        self,
        table: NDArray[np.int64],
        chains: NDArray[np.int64],
        row_ids: NDArray[np.int64],
        keys: Sequence[str] = (),
    ) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64], NDArray[np.float32]]:
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

    def _run_steps(self, table: NDArray[np.int64], row_ids: NDArray[np.int64]) -> list[Column]:
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

    def _column(
        self, table: NDArray[np.int64], chain: NDArray[np.int64], kind: Kind, row_ids: NDArray[np.int64]
    ) -> Column:
        values, _, offsets, _ = self._write_sparse(table, chain, row_ids)
        if kind.has_ids:
            return Column(values, offsets)
        return Column(values.view(np.float64), offsets if kind.is_list else None)

    def _guess_bytes_per_row(self) -> float:
        kinds = column_kinds(self.schema)
        single = [all(not kinds[name].is_list for name in s.sources) for s in self.specs if s.section == "sparse"]
        ids = sum(1 if one else _GUESSED_LIST_LENGTH for one in single)
        numbers = len(self.dense_names) + len(self.label_names) + (1 if self._weight else 0)
        return (
            4.0 * numbers
            + 8.0 * ids
            + 12.0 * len(single)
            + 4.0 * _GUESSED_LIST_LENGTH * len(self._steps.weighted)
            + 8.0
        )


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


def _describe(column: Column, row: NDArray[np.int64]) -> None:
    """Fill a row of the table of sources for a column that lies in numpy arrays."""
    row[:] = 0
    row[SHAPE] = SCALAR if column.offsets is None else LIST64
    row[LENGTH] = len(column)
    row[LIST_OFFSETS] = 0 if column.offsets is None else column.offsets.ctypes.data
    row[ELEMENT_TYPE] = I64 if column.values.dtype == np.int64 else F64
    row[VALUES] = column.values.ctypes.data
