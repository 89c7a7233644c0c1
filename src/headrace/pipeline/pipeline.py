"""`Pipeline`: a lazy chain of stages, described by method calls and run by `open`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import pyarrow.compute as pc

from headrace.errors import ConfigError
from headrace.pipeline.engine.batch_iterator import BatchIterator
from headrace.pipeline.engine.decisions import DecisionRecorder
from headrace.pipeline.engine.explanation import Explanation
from headrace.pipeline.engine.options import OpenOptions
from headrace.pipeline.logical_plan import Executor, LogicalPlan
from headrace.pipeline.transformations.batch import BatchRows
from headrace.pipeline.transformations.filter import Filter
from headrace.pipeline.transformations.map import Map
from headrace.pipeline.transformations.shuffle import Shuffle
from headrace.pipeline.transformations.to_device import ToDevice
from headrace.pipeline.transformations.transform import Plan, Transform
from headrace.pipeline.transformations.transformation import BadRows, Transformation, expect_count

if TYPE_CHECKING:
    from headrace.pipeline.dataset import PipelineDataset

__all__ = ["Pipeline"]


@dataclass(frozen=True)
class Pipeline:
    """A source and the stages behind it. Immutable: each method returns a new pipeline.

    The sequence of batches is a function of (source, seeds, epoch) alone; see `open`.

    Attributes:
        plan: The source and the stages, as data.
    """

    plan: LogicalPlan

    def map(
        self,
        function: Callable[..., Any],
        *,
        executor: Executor | None = None,
        bad_rows: BadRows = "fail",
        timeout_s: float | None = None,
        seed: int = 0,
        name: str = "",
    ) -> Pipeline:
        """Apply a function to record batches.

        Args:
            function: RecordBatch -> RecordBatch; keeps the column `__row_id` and does not change its argument. If it
                has a parameter `rng` it is given a `numpy.random.Generator` made from (seed, epoch, element).
            executor: "thread" for functions that release the GIL (Arrow, NumPy, Numba), "process" for plain Python.
            bad_rows: What happens to rows it raises on: "fail" stops the job and names them, "drop" and "quarantine"
                leave them out and account for them.
            timeout_s: Longest time one element may take; then the job stops and shows where the function is.
            seed: Of `rng`.
            name: Of the stage; "map" if empty.
        """
        stage = Map.make(function, seed=seed, position=len(self.plan.stages), bad_rows=bad_rows)
        return self._add(stage, executor=executor, timeout_s=timeout_s, name=name)

    def filter(
        self,
        predicate: Callable[..., Any] | pc.Expression,
        *,
        executor: Executor | None = None,
        bad_rows: BadRows = "fail",
        timeout_s: float | None = None,
        seed: int = 0,
        name: str = "",
    ) -> Pipeline:
        """Keep rows.

        Args:
            predicate: RecordBatch -> a boolean a row, or an expression such as `pc.field("price") > 0`; null is false.
            executor: As for `map`.
            bad_rows: As for `map`.
            timeout_s: As for `map`.
            seed: Of `rng`, as for `map`.
            name: Of the stage; "filter" if empty.
        """
        stage = Filter.make(predicate, seed=seed, position=len(self.plan.stages), bad_rows=bad_rows)
        return self._add(stage, executor=executor, timeout_s=timeout_s, name=name)

    def shuffle(
        self,
        *,
        num_rows: int,
        seed: int = 0,
        by: Literal["row", "session"] = "row",
        session: str | None = None,
        name: str = "",
    ) -> Pipeline:
        """Shuffle rows within consecutive blocks; the order depends on (seed, epoch, block) only.

        Args:
            num_rows: Rows of a block; each block is one element for the stages behind, until the next `batch`.
            seed: Another one gives another order.
            by: "session" shuffles sessions: the rows of one, as far as they are in one block, stay side by side in
                their order, so what repeats among them is still found by its neighbour.
            session: Column that tells sessions apart; by default the `session_id` of the source's schema.
            name: Of the stage; "shuffle" if empty.

        Raises:
            ConfigError: Nothing tells sessions apart, or an argument is out of range.
        """
        return self._add(Shuffle.make(num_rows, seed, by, session, self.plan.session), name=name)

    def batch(self, size: int, *, drop_last: bool = False, name: str = "") -> Pipeline:
        """Regroup rows into batches of exactly `size`, the last one smaller (or dropped, and counted as dropped)."""
        return self._add(BatchRows(size, drop_last), name=name)

    def transform(
        self, plan: Plan, *, bad_rows: BadRows = "fail", timeout_s: float | None = None, name: str = ""
    ) -> Pipeline:
        """Turn each record batch into tensors with a feature plan; rows it raises on follow `bad_rows` as for `map`."""
        return self._add(Transform(plan, bad_rows), timeout_s=timeout_s, name=name)

    def prefetch(self, num_batches: int) -> Pipeline:
        """Make up to this many batches ready ahead of the consumer, beside those in work."""
        expect_count("prefetch", "num_batches", num_batches, at_least=0)
        return Pipeline(replace(self.plan, num_prefetch=num_batches))

    def to_device(self, device: str, *, name: str = "") -> Pipeline:
        """Copy batches to a device ahead of the consumer; goes behind `transform`."""
        if not self.plan.has_tensors:
            raise ConfigError("to_device: given record batches, expected tensors; call transform(plan) before it")
        return self._add(ToDevice(str(device)), name=name)

    def open(
        self,
        *,
        workers: int | Mapping[str, int] | None = None,
        tuner: Any = None,
        memory_bytes: int | str | None = None,
        executor: Executor = "thread",
        epoch: int = 0,
        rank: int = 0,
        num_ranks: int = 1,
        state: Mapping[str, Any] | None = None,
        decisions: DecisionRecorder | None = None,
    ) -> BatchIterator:
        """Start the pipeline; the sequence of batches does not depend on any of the first four arguments.

        Args:
            workers: Elements worked on at once, in all stages together: threads find the work nearest the consumer by
                themselves. Or the number for single stages, by name; the others keep the default. None: one for each
                CPU this process may use.
            tuner: What changes workers and prefetch while the pipeline runs: "auto", another policy's name, an object
                with its two methods (see `headrace.tuning.Policy`), or "none". None: "auto", unless `workers` is set.
            memory_bytes: Bytes of all elements between source and consumer ("4GiB"). None: a quarter of the memory
                this process may use.
            executor: Who runs stages that do not say it themselves. "inline" is the plain reference: one element at a
                time, in the consumer's thread.
            epoch: Changes all random orders and numbers.
            rank: This reader among `num_ranks` of the same data: of each `num_ranks * size` rows it gets `size`. All
                ranks make the same number of steps.
            num_ranks: Readers of the same data.
            decisions: Where to write what the pipeline decides by itself, for instance a `DecisionLog`.
            state: From `BatchIterator.state_dict`, to go on where it was taken, with any workers, executor or ranks.

        Raises:
            ConfigError: An argument or stage does not fit.
            CheckpointError: The state was saved by another pipeline.
        """
        options = OpenOptions.check(
            self.plan,
            workers=workers,
            memory_bytes=memory_bytes,
            executor=executor,
            epoch=epoch,
            rank=rank,
            num_ranks=num_ranks,
            decisions=decisions,
            tuner=tuner,
        )
        return BatchIterator(self.plan, options, state)

    def explain(self, *, seconds: float = 5.0, **options: Any) -> Explanation:
        """Read for some seconds without a trainer, and say what limits the pipeline; see `BatchIterator.explain`.

        Args:
            seconds: How long to read at most.
            options: Those of `open`.

        Raises:
            ConfigError: The time was too short for a batch.
        """
        with self.open(**options) as batches:
            end = time.monotonic() + seconds
            for _ in batches:
                if time.monotonic() > end:
                    break
            return batches.explain()

    def as_dataset(self, **options: Any) -> PipelineDataset:
        """The pipeline as a torch `IterableDataset`; `options` are those of `open` (but not `state`)."""
        from headrace.pipeline.dataset import PipelineDataset  # imports torch, which pipelines of rows do without

        return PipelineDataset(self.open, **options)

    def _add(self, transformation: Transformation, **options: Any) -> Pipeline:
        return Pipeline(self.plan.add(transformation, **options))
