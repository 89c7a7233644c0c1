"""Runs the steps of a job, window by window, in a plain loop or with a scheduler."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import nn

from headrace.embeddings import LocalStore, embedding_bags, key_layouts
from headrace.errors import ConfigError
from headrace.features import FeaturePlan
from headrace.observe.decisions import DecisionLog
from headrace.observe.timeline import SCHEDULE_FILE
from headrace.pipeline import BatchIterator, PipelineCounters, RowStats
from headrace.pipeline.engine.downstream import DownstreamStage
from headrace.pipeline.engine.explanation import Explanation
from headrace.pipeline.engine.position import in_first_segment
from headrace.placement.lookahead import Lookahead
from headrace.placement.micro_batches import SPLITS, Split, whole
from headrace.placement.read_ahead import ReadAhead
from headrace.placement.resident_store import ResidentStore
from headrace.placement.samples.sample_exchange import SampleExchange
from headrace.resources import effective_cpus
from headrace.scheduling.config import SchedulerConfig
from headrace.scheduling.feature_groups import MAX_GROUPS, FeatureGroups, group_features
from headrace.scheduling.policies import BatchPrefetch, Policy
from headrace.scheduling.runtime import StepRuntime
from headrace.scheduling.state import SchedulerState
from headrace.scheduling.work import Trained, TrainingWork
from headrace.tensors import Batch
from headrace.training.feed import PlannedSources, open_batches, step_budget
from headrace.training.job import JobConfig
from headrace.training.process_group import ProcessGroup
from headrace.training.step import StepResult, TrainingStep

__all__ = [
    "FEATURES",
    "PlainStepRunner",
    "ScheduledStepRunner",
    "Scheduling",
    "StepOutput",
    "StepRunner",
    "choose_policy",
    "open_steps",
]


FEATURES = "features"
"""Name of the stage of a scheduler's feature work, after the stages of the pipeline."""


@dataclass(frozen=True)
class StepOutput:
    """Output of a finished step.

    Attributes:
        parts: The batch, and its predictions and times; several pairs if it was split into micro-batches.
        wait_s: Time that the step waited for the batch's features, in seconds.
    """

    parts: tuple[tuple[Batch, StepResult], ...]
    wait_s: float

    @property
    def num_rows(self) -> int:
        """Number of rows in the batch."""
        return sum(len(batch) for batch, _ in self.parts)


class StepRunner(Protocol):
    """Runs training steps, and counts the rows of the steps."""

    def run_step(self) -> StepOutput | None:
        """Run the next step of the window; None at its end. The next call then continues with the next window."""
        ...

    def settle(self) -> None:
        """Wait until the updates of all steps so far are applied, for instance before a checkpoint."""
        ...

    def take_row_stats(self) -> RowStats:
        """See `BatchIterator.take_row_stats`; for the batches trained on."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Position of the next batch to train on within its window."""
        ...

    def counters(self, window_s: float) -> PipelineCounters:
        """See `BatchIterator`."""
        ...

    def restart_counters(self) -> None:
        """See `BatchIterator`."""
        ...

    def explain(self) -> Explanation:
        """See `BatchIterator`."""
        ...


class _CountedSteps:
    """The counters of a `StepRunner`."""

    def __init__(self, batches: BatchIterator) -> None:
        self._batches = batches

    def counters(self, window_s: float) -> PipelineCounters:
        """See `StepRunner`."""
        return self._batches.counters(window_s)

    def restart_counters(self) -> None:
        """See `StepRunner`."""
        self._batches.restart_counters()

    def explain(self) -> Explanation:
        """See `StepRunner`."""
        return self._batches.explain()


class PlainStepRunner(_CountedSteps):
    """A `StepRunner` that trains on the pipeline's batches in a plain loop."""

    def __init__(
        self, batches: BatchIterator, step: TrainingStep, lookahead: Lookahead | ReadAhead | None = None
    ) -> None:
        """Create the runner.

        Args:
            batches: Batches of tensors.
            step: The training step.
            lookahead: Announces the keys of later batches; None if no store or storage needs them.
        """
        super().__init__(batches)
        self._step = step
        self._lookahead = lookahead

    def run_step(self) -> StepOutput | None:
        """See `StepRunner`."""
        asked = perf_counter()
        batch: Batch | None = self._batches.next_in_segment()
        if batch is None:
            return None
        wait_s = perf_counter() - asked
        if self._lookahead is None:
            return StepOutput(((batch, self._step(batch)),), wait_s)
        ready = self._batches.peek(self._lookahead.window)
        num_left = ready.segments.count(self._batches.segment)
        knows_end = ready.is_all or num_left < len(ready.segments)
        with self._lookahead.training(batch, ready.batches, num_left=num_left if knows_end else None) as parts:
            trained = self._step.train_parts(parts, len(batch))
        for (_, result), pull_s in zip(trained, self._lookahead.waits_s, strict=False):
            result.seconds["pull"] = pull_s
            result.seconds["forward"] -= pull_s
        return StepOutput(trained, wait_s)

    def settle(self) -> None:
        """See `StepRunner`; a plain step already waits for its update."""

    def take_row_stats(self) -> RowStats:
        """See `StepRunner`."""
        return self._batches.take_row_stats()

    def state_dict(self) -> dict[str, Any]:
        """See `StepRunner`."""
        return in_first_segment(self._batches.state_dict())


class ScheduledStepRunner(_CountedSteps):
    """A `StepRunner` with a scheduler, which computes the features of the pipeline's rows."""

    def __init__(
        self,
        batches: BatchIterator,
        work: TrainingWork,
        runtime: StepRuntime,
        stage: DownstreamStage,
        write_trace: Callable[[], None],
    ) -> None:
        """Use `Scheduling.open`."""
        super().__init__(batches)
        self._write_trace = write_trace
        self._stage = stage
        self._left_s = perf_counter()
        self._work = work
        self._runtime = runtime
        self._row_stats = RowStats()
        self._position = batches.state_dict()

    def run_step(self) -> StepOutput | None:
        """See `StepRunner`."""
        asked = perf_counter()
        trained: Trained | None = self._runtime.step()
        if trained is None:
            self._row_stats, self._position = self._work.end_segment()  # includes rows lost after the last good one
            self._write_trace()
            return None
        self._row_stats, self._position = trained.row_stats, trained.position
        wait_s = max(0.0, trained.computed_s - asked)
        first: StepResult = trained.parts[0][1]
        first.seconds["pull"] = max(0.0, trained.dense_s - max(asked, trained.computed_s))
        output = StepOutput(trained.parts, wait_s)
        left_s, self._left_s = self._left_s, perf_counter()
        self._stage.delivered(output.num_rows, wait_s, max(0.0, self._left_s - left_s - wait_s))
        return output

    def restart_counters(self) -> None:
        """See `StepRunner`."""
        super().restart_counters()
        self._left_s = perf_counter()

    def settle(self) -> None:
        """See `StepRunner`."""
        self._runtime.settle()

    def take_row_stats(self) -> RowStats:
        """See `StepRunner`."""
        row_stats, self._row_stats = self._row_stats, RowStats()
        return row_stats

    def state_dict(self) -> dict[str, Any]:
        """See `StepRunner`."""
        return in_first_segment(self._position)


@contextmanager
def open_steps(
    job: JobConfig,
    sources: PlannedSources,
    step: TrainingStep,
    *,
    position: Mapping[str, Any] | None,
    process_group: ProcessGroup,
    decisions: DecisionLog,
    folder: Path,
    samples: SampleExchange | None = None,
) -> Iterator[StepRunner]:
    """Open the steps of a job over its sources, one segment after the other, in a plain loop or with its scheduler.

    Args:
        job: The job.
        sources: Sources to read.
        step: The training step; the stores of its model must be in place.
        position: Position in the first source, see `BatchIterator.state_dict`; None for its start.
        process_group: The trainers of the run.
        decisions: Log for the pipeline's decisions.
        folder: Folder for the scheduler's trace of recent steps.
        samples: Exchanges samples with other trainers; None to train each where it was read.
    """
    split = SPLITS[job.placement.split]
    scheduling = Scheduling(job.scheduler, step.model, window=job.placement.window, split=split, samples=samples)
    with (
        open_batches(
            job,
            sources,
            state=position,
            transformed=scheduling.policy is None,
            layouts=key_layouts(step.model),
            window=0 if scheduling.lookahead is None else scheduling.lookahead.window,
            decisions=decisions,
            rank=process_group.rank,
            num_ranks=process_group.size,
        ) as batches,
        scheduling.open(batches, step, sources.plan_of, folder=folder, budget_bytes=step_budget(job)) as steps,
    ):
        yield steps


def choose_policy(config: SchedulerConfig, model: nn.Module) -> Policy | None:
    """The scheduling policy of a job for a model in this process; None for the plain loop.

    Raises:
        ConfigError: A policy that reads rows ahead, with a budget of rows.
    """
    if _is_resident(model) or _reads_ahead(model):
        return None  # rows are here before their batch is, so there is nothing to overlap
    has_budget = any(bags.config.budget for bags in embedding_bags(model).values())
    if has_budget and config.policy == "auto":
        return None
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    alone = not distributed or torch.distributed.get_world_size() == 1
    policy = config.choose(remote=not all(_is_local(model)), alone=alone)
    if has_budget and config.policy != "serial":
        raise ConfigError(
            f"scheduler.policy: given {config.policy} with embeddings.budget, expected auto or serial: a step changes "
            "rows of ids that are not in its batch, so rows cannot be read ahead"
        )
    return policy


def feature_groups(plan: FeaturePlan, model: nn.Module, max_groups: int) -> FeatureGroups:
    """The feature groups of a job, in which features that share a table in any module stay together."""
    table_of = {
        name: {feature: table.name for table in bags.tables for feature in table.feature_names}
        for name, bags in embedding_bags(model).items()
    }

    def tables_of(feature: str) -> list[str]:
        return [f"{name}.{tables.get(feature, feature)}" for name, tables in table_of.items()]

    return group_features(plan, tables_of, max_groups=max_groups)


def _is_local(model: nn.Module) -> list[bool]:
    return [isinstance(bags.store, LocalStore) for bags in embedding_bags(model).values()]


def _is_resident(model: nn.Module) -> bool:
    return any(isinstance(bags.store, ResidentStore) for bags in embedding_bags(model).values())


def _reads_ahead(model: nn.Module) -> bool:
    return bool(ReadAhead(list(embedding_bags(model).values()), 0))


class Scheduling:
    """A job's scheduler, or its plain loop.

    Attributes:
        policy: Scheduling policy; None for the plain loop.
        lookahead: Announces keys of later batches, if this process keeps rows of shards or has rows in files; otherwise
            None.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        model: nn.Module,
        *,
        window: int = 1,
        split: Split = whole,
        samples: SampleExchange | None = None,
    ) -> None:
        """Choose a policy.

        Args:
            config: The `scheduler` section of the job.
            model: Model of the job; its stores must be in place.
            window: Batches whose keys are announced ahead.
            split: How batches are split if none is announced ahead.
            samples: See `open_steps`.
        """
        self.policy = choose_policy(config, model)
        bags = list(embedding_bags(model).values())
        resident = Lookahead(bags, window, split, samples) if _is_resident(model) else None
        self.lookahead: Lookahead | ReadAhead | None = resident or ReadAhead(bags, window) or None
        self._config = config
        self._model = model

    @contextmanager
    def open(
        self,
        batches: BatchIterator,
        step: TrainingStep,
        plan_of: Callable[[int], FeaturePlan],
        *,
        budget_bytes: int,
        folder: Path | None = None,
    ) -> Iterator[StepRunner]:
        """Context with the steps, run with the policy if there is one.

        Args:
            batches: Batches of rows with a policy, or of tensors without; see `open_batches`.
            step: The training step.
            plan_of: Returns the feature plan of a segment, with its grouping decided.
            folder: Folder for the trace of recent steps; None for no trace.
            budget_bytes: Memory budget for batches between reading and training.
        """
        if self.policy is None:
            yield PlainStepRunner(batches, step, self.lookahead)
            return
        config, model, policy = self._config, self._model, self.policy
        store_waits = not any(_is_local(model))
        num_cores = config.threads or max(1, int(effective_cpus().count))
        spare_cores = max(0, num_cores - torch.get_num_threads())
        state = SchedulerState(
            policy,
            num_cores=num_cores,
            spare_cores=spare_cores,
            store_waits=store_waits,
            budget_bytes=budget_bytes,
            num_segments=batches.num_segments,
        )
        prefetches = isinstance(policy, BatchPrefetch)  # requested by name, so competing threads are accepted
        has_groups = self._most_groups(store_waits) > 1
        nothing_overlaps = not store_waits and not has_groups and spare_cores == 0 and not prefetches
        stage = batches.add_stage(FEATURES, num_cores)

        @lru_cache(maxsize=2)
        def groups_of(segment: int) -> FeatureGroups:
            plan = plan_of(segment)
            return feature_groups(plan, model, self._max_groups(plan, store_waits))

        def write_trace() -> None:
            if folder is not None:
                runtime.trace.write(folder / SCHEDULE_FILE, policy.name)

        with (
            TrainingWork(batches, groups_of, model, step, stage=stage, verify=config.verify) as work,
            StepRuntime(work, state, is_inline=nothing_overlaps) as runtime,
        ):
            try:
                yield ScheduledStepRunner(batches, work, runtime, stage, write_trace)
            finally:
                write_trace()

    def _max_groups(self, plan: FeaturePlan, store_waits: bool) -> int:
        """Maximum number of feature groups. One if the plan searches equal rows, because groups would find different
        ones.

        Gradients of equal rows are summed first, so the bits of parameters would depend on which strategy is faster.
        """
        if plan.grouping is None or plan.grouping.groups:
            return 1
        return self._most_groups(store_waits)

    def _most_groups(self, store_waits: bool) -> int:
        return self._config.max_groups or (MAX_GROUPS if store_waits else 1)
