"""`FeaturePlan`: converts record batches to batches of tensors."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from copy import copy
from typing import Any

import pyarrow as pa

from headrace.errors import ConfigError, DataError, expect
from headrace.features.buffers import BufferPool
from headrace.features.compiled import CompiledPlan, PlanCompiler
from headrace.features.compute import compute
from headrace.features.equal_rows import measure_columns
from headrace.features.grouping import MIN_ROWS, Dedup, Grouping, GroupsConfig, choose_groups, read_dedup
from headrace.features.kernels.sources import read_batch
from headrace.features.savings import Savings, Tally
from headrace.features.spec import FeatureSpec, column_kinds, default_specs, read_specs
from headrace.logs.groups import expand
from headrace.logs.schema import Schema
from headrace.logs.source import ROW_ID
from headrace.tensors import Batch

__all__ = ["FeaturePlan"]

_GUESSED_LIST_LENGTH = 20  # ids per row before the first batch: the mean of Meta's public workloads
_MARGIN = 1.1  # margin of an estimate over the largest batch seen
_SAMPLE_ROWS = 4096  # rows on which a grouping is decided

_deciding = threading.Lock()


class FeaturePlan:
    """Converts log rows to tensors. Compiled once, then applied to any number of batches from any number of threads.

    A plan is compiled for the Arrow schema of its batches (`headrace.features.compiled`); each batch then takes a
    single pass (`headrace.features.compute`). Consecutive operators on a column run block by block: they read the
    column once and write results directly into the batch, without intermediate copies. Features that repeat from row to
    row are computed once per unique row.

    Attributes:
        schema: Schema of the logs.
        specs: The features.
        dedup: "auto" (decided by `decide`, or else on the first batch), "off", or explicit groups of columns. Group
            columns of nested logs are always used.
        grouping: How plain columns are grouped, and why; None until decided. Once decided it never changes.
        columns: Distinct source columns that the plan reads: features, labels, weight and row id.
        dense_names: Names of the columns of `Batch.dense`.
        sparse_keys: Keys of `Batch.sparse`: keys without weights, then keys with weights. The groups of a batch may
            order them differently.
        label_names: Names of the columns of `Batch.labels`.
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
                f"FeaturePlan.from_config creates them from a job file"
            )
        if dedup not in ("auto", "off"):
            expect(dedup, GroupsConfig, where="FeaturePlan: dedup", expected="auto, off or a GroupsConfig")
        self.schema = schema
        self.specs = tuple(specs)
        self.dedup = dedup
        self._compiler = PlanCompiler(self.specs, schema, with_labels=with_labels)
        self.dense_names = self._compiler.whole.dense_names
        self.sparse_keys = self._compiler.whole.sparse_keys
        self.label_names = self._compiler.label_names
        self.columns = tuple(dict.fromkeys([*self._compiler.sources, ROW_ID]))
        self.grouping: Grouping | None = None
        if dedup == "off":
            self.grouping = Grouping((), "adjacent", "turned off in the job")
        elif isinstance(dedup, GroupsConfig):
            self.grouping = Grouping(dedup.groups, dedup.order, "groups given in the job")
        self._compiled: CompiledPlan | None = None  # for the schema and grouping of the latest batch
        self._buffers = BufferPool()
        self._tally = Tally()
        self._bytes_per_row = self._guess_bytes_per_row()

    @classmethod
    def from_config(cls, config: Any, schema: Schema) -> FeaturePlan:
        """Create a plan from the `features:` section of a job file; the default plan for None or if only `dedup` is
        given.

        Raises:
            ConfigError: The section is invalid; names the feature, operator and key, the given and the expected value.
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
        """A plan of all columns: numbers with `fill: 0` and `log1p`, ids unchanged, the first 50 ids of lists."""
        return cls(default_specs(schema), schema)

    def without_labels(self) -> FeaturePlan:
        """The same plan for scoring: it reads neither labels nor weights, and `Batch.labels` is [B, 0]."""
        return FeaturePlan(self.specs, self.schema, with_labels=False, dedup=self.dedup)

    def part(self, specs: Sequence[FeatureSpec], *, with_labels: bool) -> FeaturePlan:
        """A plan of some of the features; it keeps the decision on groups, if one was made."""
        plan = FeaturePlan(specs, self.schema, with_labels=with_labels, dedup=self.dedup)
        plan.grouping = self.grouping
        plan._tally = self._tally
        return plan

    def estimate_bytes(self, num_rows: int) -> int:
        """Estimate the bytes of a batch of `num_rows` rows, from list lengths seen so far or an initial guess."""
        return int(self._bytes_per_row * num_rows) + 8

    @property
    def savings(self) -> Savings:
        """Statistics of the work done so far, compared with the work without deduplication."""
        return self._tally.savings

    def decide(self, sample: pa.RecordBatch) -> FeaturePlan:
        """Decide which plain columns to group from a sample of rows; returns a copy of the plan with that decision.

        If every run of a job decides on the same rows, its batches always have the same structure. Returns the plan
        itself if the job sets `dedup` or the sample is empty.

        Args:
            sample: Some thousands of rows, in the order of the batches.

        Raises:
            DataError: As for `apply`.
        """
        if self.dedup != "auto" or not sample.num_rows:
            return self
        return self._with(self._choose(sample))

    def keep_plain(self, reason: str) -> FeaturePlan:
        """A copy of the plan that groups no plain columns, for a reason; the plan itself if the job sets `dedup`."""
        return self._with(Grouping((), "adjacent", reason)) if self.dedup == "auto" else self

    def apply(self, batch: pa.RecordBatch) -> Batch:
        """Convert a record batch to a batch of tensors.

        Args:
            batch: Rows with the plan's `columns`, plain or in group columns, in any order; other columns are ignored.
                Columns may have any type allowed in logs and are cast in the same way. Without `__row_id`, rows are
                numbered from 0.

        Returns:
            The batch: repeated features are in one `InverseKeyedJaggedTensor` per group, others in one
            `KeyedJaggedTensor`.

        Raises:
            DataError: A column is missing or has an unsuitable type, a value cannot be cast to the schema's type, or a
                row has a different number of weights than ids.
        """
        expect(batch, pa.RecordBatch, where="FeaturePlan.apply: batch", expected="a pyarrow.RecordBatch")
        if self.grouping is None and batch.num_rows >= MIN_ROWS:
            self._decide_once(batch)
        compiled = self._compile(batch.schema)
        try:
            result, savings = compute(compiled, batch, self._buffers)
        except (DataError, ValueError):
            if compiled.has_groups:  # the error numbers unique rows; errors of plain rows have row numbers of the batch
                plain = expand(batch)
                compute(self._compiler.compile(plain.schema, None), plain, self._buffers)
            raise
        self._tally.add(savings)
        if batch.num_rows:
            self._bytes_per_row = max(self._bytes_per_row, _MARGIN * savings.num_bytes / batch.num_rows)
        return result

    def _compile(self, schema: pa.Schema) -> CompiledPlan:
        grouping, latest = self.grouping, self._compiled
        if latest is not None and latest.grouping is grouping and latest.binding.schema.equals(schema):
            return latest
        self._compiled = compiled = self._compiler.compile(schema, grouping)
        return compiled

    def _with(self, grouping: Grouping) -> FeaturePlan:
        plan = copy(self)
        plan.grouping = grouping
        return plan

    def _decide_once(self, batch: pa.RecordBatch) -> None:
        """Decide on the first batch of any thread; the decision never changes afterwards."""
        with _deciding:
            if self.grouping is None:
                self.grouping = self._choose(batch)

    def _choose(self, sample: pa.RecordBatch) -> Grouping:
        compiled = self._compiler.compile(sample.schema, None)
        rows = compiled.binding.convert(sample.slice(0, _SAMPLE_ROWS))
        if compiled.stored:
            return Grouping((), "adjacent", "the logs are nested: the groups of the file are used")
        names, kinds = self._compiler.whole.columns, self._compiler.kinds
        return choose_groups(measure_columns(names, kinds, read_batch(rows, compiled.binding.layout), rows.num_rows))

    def _guess_bytes_per_row(self) -> float:
        kinds, steps = self._compiler.kinds, self._compiler.whole
        single = [all(not kinds[n].is_list for n in s.sources) for s in self.specs if s.section == "sparse"]
        ids = sum(1 if one else _GUESSED_LIST_LENGTH for one in single)
        numbers = len(steps.dense_names) + len(self.label_names) + (1 if self._compiler.weight else 0)
        return 4.0 * numbers + 8.0 * ids + 12.0 * len(single) + 4.0 * _GUESSED_LIST_LENGTH * len(steps.weighted) + 8.0
