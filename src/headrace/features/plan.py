"""`FeaturePlan`: record batches in, batches of tensors out."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from headrace.errors import ConfigError, DataError, expect
from headrace.features.binding import Binding, bind
from headrace.features.buffers import BufferPool
from headrace.features.deduplicated import compute, equal_rows, measure_columns, row_bytes, stored_rows
from headrace.features.domains import Domain, GroupRows, split
from headrace.features.grouping import MIN_ROWS, Dedup, Grouping, GroupsConfig, choose_groups, read_dedup
from headrace.features.kernels.dense import write_row_ids
from headrace.features.kernels.gathering import gather_sources, gathered_bytes
from headrace.features.kernels.sources import read_batch
from headrace.features.kernels.unique import count_expanded_ids
from headrace.features.operator import Kind
from headrace.features.part import Part
from headrace.features.realised import Realised, Savings
from headrace.features.spec import FeatureSpec, column_kinds, default_specs, read_specs
from headrace.logs.groups import expand
from headrace.logs.pieces import ROW_ID
from headrace.logs.schema import Schema
from headrace.tensors import Batch, InverseKeyedJaggedTensor, KeyedJaggedTensor

__all__ = ["FeaturePlan"]

_GUESSED_LIST_LENGTH = 20  # ids a row before any batch was seen: the mean of Meta's public workloads
_MARGIN = 1.1  # of an estimate over the largest batch seen
_SAMPLE_ROWS = 4096  # rows that a grouping is decided on

_deciding = threading.Lock()

Ints = NDArray[np.int64]


class FeaturePlan:
    """Turns rows of logs into tensors: compiled once, applied to any number of batches from any number of threads.

    Consecutive operators on a column run block by block in one pass that reads the column once and writes the result
    where it belongs in the batch; no operator, and no join of columns, makes a copy of its own. Features that repeat
    from row to row are computed once per unique row, see `headrace.features.domains`.

    Attributes:
        schema: Of the logs.
        specs: The features.
        dedup: "auto" (decided on the first batch, or by `decide`), "off", or groups of columns. Group columns, which
            nested logs have, are used in any case.
        grouping: Which plain columns are grouped, and why; None until that is decided.
        columns: Source columns it reads, each once: features, labels, weight and row id.
        dense_names: Columns of `Batch.dense`.
        sparse_keys: Keys of `Batch.sparse`: those without weights, then those with. A batch's groups may hold them in
            another order.
        label_names: Columns of `Batch.labels`.
    """

    def __init__(
        self,
        specs: Sequence[FeatureSpec],
        schema: Schema,
        *,
        with_labels: bool = True,
        dedup: Dedup = "auto",
    ) -> None:
        expect(schema, Schema, where="FeaturePlan: schema", expected="a Schema")
        if not isinstance(specs, list | tuple) or not all(isinstance(spec, FeatureSpec) for spec in specs):
            raise ConfigError(
                f"FeaturePlan: specs: given {type(specs).__name__}, expected a list of FeatureSpec; "
                f"FeaturePlan.from_config makes them of what a job file says"
            )
        if dedup not in ("auto", "off"):
            expect(dedup, GroupsConfig, where="FeaturePlan: dedup", expected="auto, off or a GroupsConfig")
        self.schema = schema
        self.specs = tuple(specs)
        self.dedup = dedup
        self._kinds = column_kinds(schema)
        self._buffers = BufferPool()
        self._whole = Part(self.specs, self._kinds, self._buffers)
        self._with_labels = with_labels
        self.dense_names = self._whole.dense_names
        self.sparse_keys = self._whole.sparse_keys
        self.label_names = tuple(label.name for label in schema.labels) if with_labels else ()
        self._weight = schema.weight if with_labels else None
        # Sources by number: the features' columns, labels and weight; the row id comes last.
        self._sources = [*self._whole.columns, *self.label_names, *([self._weight] if self._weight else [])]
        self.columns = tuple(dict.fromkeys([*self._sources, ROW_ID]))
        extra = range(len(self._whole.columns), len(self._sources))
        self._plain_chains = np.array([[at, 0, 0, 0, 0, -1] for at in extra], np.int64).reshape(-1, 6)
        self._binding: Binding | None = None
        self._splits: dict[Any, tuple[Domain, ...]] = {}
        self._split: tuple[Binding, Grouping | None, list[int], tuple[Domain, ...]] | None = None
        self._realised = Realised()
        self.grouping: Grouping | None = None
        if dedup == "off":
            self.grouping = Grouping((), "adjacent", "switched off in the job")
        elif isinstance(dedup, GroupsConfig):
            self.grouping = Grouping(dedup.groups, dedup.order, "groups given in the job")
        self._bytes_per_row = self._guess_bytes_per_row()

    @classmethod
    def from_config(cls, config: Any, schema: Schema) -> FeaturePlan:
        """A plan from a job file's `features:` section; the default plan for None, or where only `dedup` is given.

        Raises:
            ConfigError: Names feature, operator and key, what was given and what was expected.
        """
        expect(schema, Schema, where="FeaturePlan: schema", expected="a Schema")
        dedup: Dedup = "auto"
        if isinstance(config, dict) and "dedup" in config:
            dedup = read_dedup(config["dedup"], column_kinds(schema))
            config = {key: value for key, value in config.items() if key != "dedup"} or None
        specs = default_specs(schema) if config is None else read_specs(config, schema)
        return cls(specs, schema, dedup=dedup)

    @classmethod
    def default(cls, schema: Schema) -> FeaturePlan:
        """A plan over all columns: numbers filled with 0, then `log1p`; ids as they are; the first 50 of lists."""
        return cls(default_specs(schema), schema)

    def without_labels(self) -> FeaturePlan:
        """The same features for rows to score: reads neither labels nor weights, and `Batch.labels` is [B, 0]."""
        return FeaturePlan(self.specs, self.schema, with_labels=False, dedup=self.dedup)

    def part(self, specs: Sequence[FeatureSpec], *, with_labels: bool) -> FeaturePlan:
        """Some of the features as a plan of their own, which keeps to the decision on groups where there is one."""
        plan = FeaturePlan(specs, self.schema, with_labels=with_labels, dedup=self.dedup)
        plan.grouping = self.grouping
        plan._realised = self._realised
        return plan

    def estimate_bytes(self, num_rows: int) -> int:
        """Bytes of a batch of that many rows: from list lengths seen so far, a guess before the first batch."""
        return int(self._bytes_per_row * num_rows) + 8

    @property
    def savings(self) -> Savings:
        """What was computed so far, against what would have been without deduplication."""
        return self._realised.savings

    def decide(self, sample: pa.RecordBatch, *, again: bool = False) -> Grouping:
        """Decide which plain columns are grouped, if that is open: for the same decision in every run of a job.

        Args:
            sample: Rows in the order in which batches will hold them, some thousands of them.
            again: Decide anew if that was decided on other rows; what the job says is kept to.
        """
        with _deciding:
            if again and self.dedup == "auto":
                self.grouping = None
            if self.grouping is None and sample.num_rows:
                binding = self._bind(sample.schema)
                rows = binding.convert(sample.slice(0, _SAMPLE_ROWS))
                if any(home >= 0 for home in binding.homes):
                    self.grouping = Grouping((), "adjacent", "the logs are nested: groups are those of the file")
                else:
                    sources = self._read(rows, binding)
                    names = self._whole.columns
                    uses = measure_columns(names, range(len(names)), self._kinds, sources, rows.num_rows)
                    self.grouping = choose_groups(uses)
        return self.grouping or Grouping((), "adjacent", "nothing to decide on: no rows")

    def keep_plain(self, reason: str) -> None:
        """Decide that plain columns are not grouped, for a reason, unless the job says otherwise."""
        if self.dedup == "auto":
            self.grouping = Grouping((), "adjacent", reason)

    def apply(self, batch: pa.RecordBatch) -> Batch:
        """Compute a batch of tensors.

        Args:
            batch: Rows with the plan's `columns`, plain or in group columns, in any order, others ignored. Columns may
                be of any type that a log may store them as; they are cast in the same way. Without `__row_id`, rows
                are counted from 0.

        Returns:
            Features that repeat as `InverseKeyedJaggedTensor`s, one a group; the others in one `KeyedJaggedTensor`.

        Raises:
            DataError: If a column is missing or has a type that does not suit, a value cannot be cast to what the
                schema says, or a row has not as many weights as ids.
        """
        expect(batch, pa.RecordBatch, where="FeaturePlan.apply: batch", expected="a pyarrow.RecordBatch")
        if self.grouping is None and batch.num_rows >= MIN_ROWS:
            self.decide(batch)
        binding = self._bind(batch.schema)
        try:
            result = self._apply(binding.convert(batch), binding)
        except (DataError, ValueError):
            if any(home >= 0 for home in binding.homes) or (self.grouping and self.grouping.groups):
                # It speaks of unique rows; the plain path names the row of the batch.
                self._apply_plain(expand(batch))
            raise
        if batch.num_rows:
            num_bytes = result.num_bytes
            self._bytes_per_row = max(self._bytes_per_row, _MARGIN * num_bytes / batch.num_rows)
            saved = sum(_expanded_bytes(group) - group.num_bytes for group in result.sparse)
            self._realised.add(Savings(batch.num_rows, num_bytes=num_bytes, num_plain_bytes=num_bytes + saved))
        return result

    def _apply(self, batch: pa.RecordBatch, binding: Binding) -> Batch:
        sources = self._read(batch, binding)
        row_ids = np.empty(batch.num_rows, np.int64)
        write_row_ids(sources, len(self._sources) if len(sources) > len(self._sources) else -1, row_ids)
        stored, domains = self._domains(binding)
        groups = stored_rows(batch, stored) if stored else self._equal_rows(sources, len(row_ids))
        num_columns = len(self._whole.columns)
        which = np.array([stored.index(home) if home >= 0 else -1 for home in binding.homes[:num_columns]], np.int64)
        self._realised.add(row_bytes(sources[:num_columns], which, groups if stored else (), len(row_ids)))
        arena = self._spread_extra(sources, binding, stored, groups)
        labels, weights = self._labels_and_weights(sources, row_ids)
        del arena
        if groups:
            num_dense = len(self.dense_names)
            dense, sparse = compute(domains, groups, sources, row_ids, num_dense, self._buffers, self._realised)
        else:
            dense, sparse = self._compute_whole(sources, row_ids)
        return Batch(
            dense=torch.from_numpy(dense),
            sparse=sparse,
            labels=torch.from_numpy(labels),
            row_ids=torch.from_numpy(row_ids),
            weights=None if weights is None else torch.from_numpy(weights.reshape(-1)),
        )

    def _apply_plain(self, batch: pa.RecordBatch) -> None:
        """Compute features row by row, for the errors this raises."""
        binding = self._bind(batch.schema)
        batch = binding.convert(batch)
        sources = self._read(batch, binding)
        row_ids = np.empty(batch.num_rows, np.int64)
        write_row_ids(sources, len(self._sources) if len(sources) > len(self._sources) else -1, row_ids)
        self._compute_whole(sources, row_ids)

    def _compute_whole(
        self, sources: Ints, row_ids: Ints
    ) -> tuple[NDArray[np.float32], tuple[KeyedJaggedTensor | InverseKeyedJaggedTensor, ...]]:
        """All features for all rows."""
        part = self._whole
        table = part.load(sources[: len(part.columns)])
        held = part.run_steps(table, row_ids)
        dense: NDArray[np.float32] = self._buffers.empty((len(row_ids), len(self.dense_names)), np.float32)
        part.dense(table, row_ids, dense)
        sparse = part.sparse(table, row_ids)
        del held
        num_values = len(row_ids) * (len(self.dense_names) + len(self.sparse_keys))
        num_ids = sum(group.values.numel() for group in sparse)
        self._realised.add(Savings(0, num_values, num_values, num_ids, num_ids))
        return dense, sparse

    def _read(self, batch: pa.RecordBatch, binding: Binding) -> Ints:
        return read_batch(batch, binding.layout)

    def _bind(self, schema: pa.Schema) -> Binding:
        binding = self._binding
        if binding is None or not binding.schema.equals(schema):
            kinds = self._kinds | dict.fromkeys(self._sources[len(self._whole.columns) :], Kind.NUMBER)
            columns = [*self._sources, ROW_ID] if ROW_ID in schema.names else self._sources
            binding = self._binding = bind(schema, columns, kinds | {ROW_ID: Kind.ID}, self.schema)
        return binding

    def _domains(self, binding: Binding) -> tuple[list[int], tuple[Domain, ...]]:
        """Where the group columns stand in a batch, and the features split by the rows they are computed for."""
        if self._split is not None and self._split[0] is binding and self._split[1] is self.grouping:
            return self._split[2:]
        stored = sorted({home for home in binding.homes if home >= 0})
        if stored:
            homes = zip(self._whole.columns, binding.homes, strict=False)
            group_of = {name: stored.index(home) for name, home in homes if home >= 0}
        else:
            groups = self.grouping.groups if self.grouping is not None else ()
            group_of = {name: at for at, group in enumerate(groups) for name in group}
        key = (tuple(sorted(group_of.items())), bool(stored))
        if group_of and key not in self._splits:
            self._splits[key] = split(
                self.specs, self._kinds, self._whole.columns, group_of, self._buffers, stored=bool(stored)
            )
        self._split = binding, self.grouping, stored, self._splits.get(key, ())
        return self._split[2:]

    def _equal_rows(self, sources: Ints, num_rows: int) -> list[GroupRows]:
        """The unique rows of the groups that were decided on; their columns are plain."""
        if self.grouping is None:
            return []
        number_of = {name: at for at, name in enumerate(self._whole.columns)}
        groups = [
            np.array([number_of[name] for name in group if name in number_of], np.int64)
            for group in self.grouping.groups
        ]
        return equal_rows(sources, groups, num_rows, self.grouping.order)

    def _spread_extra(
        self, sources: Ints, binding: Binding, stored: list[int], groups: list[GroupRows]
    ) -> NDArray[np.uint8]:
        """Make labels and weights that lie in a group sources of all rows; returns what must outlive their use."""
        which = np.full(len(sources), -1, np.int64)
        for at in range(len(self._whole.columns), len(self._sources)):
            if binding.homes[at] >= 0:
                which[at] = stored.index(binding.homes[at])
        if not (which >= 0).any():
            return np.empty(0, np.uint8)
        rows = np.stack([group.rows[group.inverse] for group in groups])
        arena = np.empty(int(gathered_bytes(sources, which, rows)), np.uint8)
        gather_sources(sources, which, rows, arena)
        return arena

    def _labels_and_weights(
        self, sources: Ints, row_ids: Ints
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        num_labels = len(self.label_names)
        labels = np.empty((len(row_ids), num_labels), np.float32)
        self._whole.write_dense(sources, self._plain_chains[:num_labels], row_ids, labels, 0, fill=False)
        if self._weight is None:
            return labels, None
        weights = np.empty((len(row_ids), 1), np.float32)
        self._whole.write_dense(sources, self._plain_chains[num_labels:], row_ids, weights, 0, fill=False)
        return labels, weights

    def _guess_bytes_per_row(self) -> float:
        single = [all(not self._kinds[n].is_list for n in s.sources) for s in self.specs if s.section == "sparse"]
        ids = sum(1 if one else _GUESSED_LIST_LENGTH for one in single)
        numbers = len(self.dense_names) + len(self.label_names) + (1 if self._weight else 0)
        return (
            4.0 * numbers + 8.0 * ids + 12.0 * len(single) + 4.0 * _GUESSED_LIST_LENGTH * self._whole.num_weighted + 8.0
        )


def _expanded_bytes(group: KeyedJaggedTensor | InverseKeyedJaggedTensor) -> int:
    """Bytes of a group for all rows, each with lists of its own."""
    if isinstance(group, KeyedJaggedTensor):
        return group.num_bytes
    inverse, num_unique = group.inverse_lookup.numpy(), max(1, group.unique_stride)
    num_ids = int(count_expanded_ids(group.lengths.numpy(), inverse, num_unique))
    return num_ids * (8 if group.weights is None else 12) + 12 * len(group.keys) * group.stride + 8
