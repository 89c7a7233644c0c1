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
from headrace.pipeline.transformations.slices import GrowingSize
from headrace.pipeline.transformations.to_device import ToDevice
from headrace.pipeline.transformations.transform import Plan, SegmentPlans, Transform
from headrace.pipeline.transformations.transformation import BadRows, Transformation, expect_count

if TYPE_CHECKING:
    from headrace.pipeline.dataset import PipelineDataset

__all__ = ["Pipeline"]


@dataclass(frozen=True)
class Pipeline:
    """Sources followed by stages. Immutable: each method returns a new pipeline.

    The sequence of batches is a function of (sources, seeds, epoch) alone; see `open`.

    Attributes:
        plan: The sources and the stages, as data.
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
            function: RecordBatch -> RecordBatch; must keep the column `__row_id` and not modify its argument. If it has
                a parameter `rng`, it receives a `numpy.random.Generator` seeded by (seed, epoch, element).
            executor: "thread" for functions that release the GIL (Arrow, NumPy, Numba), "process" for plain Python.
            bad_rows: How to handle rows on which the function raises: "fail" stops the job and names them; "drop" and
                "quarantine" skip and count them.
            timeout_s: Maximum seconds for one element, after which the job stops and prints the function's stack.
            seed: Seed of `rng`.
            name: Name of the stage; "map" if empty.
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
        """Keep the rows that match a predicate.

        Args:
            predicate: RecordBatch -> one boolean per row, or an expression such as `pc.field("price") > 0`; null counts
                as false.
            executor: As for `map`.
            bad_rows: As for `map`.
            timeout_s: As for `map`.
            seed: Seed of `rng`, as for `map`.
            name: Name of the stage; "filter" if empty.
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
        """Shuffle rows within consecutive blocks; the order depends only on (seed, epoch, block).

        Args:
            num_rows: Rows per block; each block is one element for the following stages, until the next `batch`.
            seed: Seed of the order.
            by: "row" shuffles single rows. "session" shuffles whole sessions: the rows of a session within a block stay
                adjacent and in order, so that deduplication still finds repeated values in neighbouring rows.
            session: Session id column; by default the `session_id` of the source's schema.
            name: Name of the stage; "shuffle" if empty.

        Raises:
            ConfigError: There is no session id column, or an argument is out of range.
        """
        return self._add(Shuffle.make(num_rows, seed, by, session, self.plan.session), name=name)

    def batch(self, size: int | GrowingSize, *, drop_last: bool = False, name: str = "") -> Pipeline:
        """Regroup rows into batches of exactly `size` rows; the last one may be smaller, or is dropped and counted.

        With a `GrowingSize`, batches start small and grow with the number of rows before them.
        """
        return self._add(BatchRows(size, drop_last), name=name)

    def transform(
        self,
        plan: Plan | SegmentPlans,
        *,
        bad_rows: BadRows = "fail",
        timeout_s: float | None = None,
        name: str = "",
    ) -> Pipeline:
        """Turn each record batch into tensors with a feature plan; `bad_rows` works as for `map`.

        Args:
            plan: Has `apply(record_batch)`, such as `headrace.features.FeaturePlan`; or `plan_of(segment)`, which
                returns a plan for each source of the pipeline.
            bad_rows: As for `map`.
            timeout_s: As for `map`.
            name: Name of the stage; "transform" if empty.
        """
        return self._add(Transform(plan, bad_rows), timeout_s=timeout_s, name=name)

    def prefetch(self, num_batches: int) -> Pipeline:
        """Keep up to this many finished batches ready for the consumer, in addition to those in progress."""
        expect_count("prefetch", "num_batches", num_batches, at_least=0)
        return Pipeline(replace(self.plan, num_prefetch=num_batches))

    def to_device(self, device: str, *, name: str = "") -> Pipeline:
        """Copy batches to a device ahead of the consumer; must follow `transform`."""
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
        """Start the pipeline; none of the first four arguments affects the sequence of batches.

        Args:
            workers: Number of elements processed at once, over all stages; threads pick the work nearest the consumer.
                Or a mapping of stage names to numbers; other stages keep the default. None: one per CPU that this
                process may use.
            tuner: Policy that adjusts workers and prefetch while the pipeline runs: "auto", the name of another policy,
                an object with the methods of `headrace.tuning.Policy`, or "none". None: "auto", unless `workers` is
                set.
            memory_bytes: Memory budget of all elements between source and consumer ("4GiB"). None: a quarter of the
                memory that this process may use.
            executor: Where stages without an executor of their own run. "inline" is the reference implementation: one
                element at a time, in the consumer's thread.
            epoch: Epoch number; changes the shuffle order and other random numbers.
            rank: Rank of this reader among `num_ranks` readers of the same data: it gets `size` of every `num_ranks *
                size` rows. All ranks get the same number of batches.
            num_ranks: Number of readers of the same data.
            decisions: Where to record the pipeline's automatic decisions, for instance a `DecisionLog`.
            state: Result of `BatchIterator.state_dict`, to resume at that position with any workers, executor or ranks.

        Raises:
            ConfigError: An argument or stage is invalid.
            CheckpointError: The state was saved by a different pipeline.
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
        """Read for some seconds without a trainer and report the bottleneck; see `BatchIterator.explain`.

        Args:
            seconds: Maximum seconds to read.
            options: Arguments of `open`.

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
        """The pipeline as a torch `IterableDataset`; `options` are the arguments of `open`, except `state`."""
        from headrace.pipeline.dataset import PipelineDataset  # imports torch, which pipelines of rows do not need

        return PipelineDataset(self.open, **options)

    def _add(self, transformation: Transformation, **options: Any) -> Pipeline:
        return Pipeline(self.plan.add(transformation, **options))
