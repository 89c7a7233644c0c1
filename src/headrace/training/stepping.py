"""The steps of a window, one after the other: a plain loop over ready batches, or under a scheduler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import nn

from headrace.embeddings import LocalStore, embedding_bags
from headrace.features import FeaturePlan
from headrace.observe.timeline import SCHEDULE_FILE
from headrace.pipeline import BatchIterator, PipelineCounters, RowStats
from headrace.pipeline.engine.downstream import DownstreamStage
from headrace.resources import effective_cpus
from headrace.scheduling.config import SchedulerConfig
from headrace.scheduling.feature_groups import MAX_GROUPS, FeatureGroups, group_features
from headrace.scheduling.policies import BatchPrefetch, Policy
from headrace.scheduling.runtime import StepRuntime
from headrace.scheduling.selection import StrategySelector, make_selector
from headrace.scheduling.state import SchedulerState
from headrace.scheduling.work import Trained, TrainingWork
from headrace.tensors import Batch
from headrace.training.step import StepResult, TrainingStep

__all__ = ["FEATURES", "PlainStepRunner", "ScheduledStepRunner", "Scheduling", "StepOutput", "StepRunner"]


FEATURES = "features"
"""Stage of the feature work under a scheduler, behind the stages of the pipeline."""


@dataclass(frozen=True)
class StepOutput:
    """A finished step.

    Attributes:
        parts: The batch it trained on, and its predictions and times; several pairs if it was split into micro-batches.
        wait_s: How long it waited for the batch's features.
    """

    parts: tuple[tuple[Batch, StepResult], ...]
    wait_s: float

    @property
    def num_rows(self) -> int:
        """Rows of the batch."""
        return sum(len(batch) for batch, _ in self.parts)


class StepRunner(Protocol):
    """Runs training steps, and accounts for the rows of those that were run."""

    def run_step(self) -> StepOutput | None:
        """Run the next step; None if there is none."""
        ...

    def settle(self) -> None:
        """Wait until the updates of all steps so far are applied, as state that is saved must have them."""
        ...

    def take_row_stats(self) -> RowStats:
        """See `BatchIterator`: of the batches trained on."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where the batch after the last one trained on begins."""
        ...

    def counters(self, window_s: float) -> PipelineCounters:
        """See `BatchIterator`."""
        ...


class PlainStepRunner:
    """One batch after the other as the pipeline makes them ready."""

    def __init__(self, batches: BatchIterator, step: TrainingStep) -> None:
        """Args: batches: Ready to train on. step: Trains."""
        self._batches = batches
        self._step = step

    def run_step(self) -> StepOutput | None:
        """See `StepRunner`."""
        asked = perf_counter()
        batch: Batch | None = next(self._batches, None)
        if batch is None:
            return None
        wait_s = perf_counter() - asked
        return StepOutput(((batch, self._step(batch)),), wait_s)

    def settle(self) -> None:
        """See `StepRunner`: a plain step waits for its update."""

    def take_row_stats(self) -> RowStats:
        """See `StepRunner`."""
        return self._batches.take_row_stats()

    def state_dict(self) -> dict[str, Any]:
        """See `StepRunner`."""
        return self._batches.state_dict()

    def counters(self, window_s: float) -> PipelineCounters:
        """See `StepRunner`."""
        return self._batches.counters(window_s)


class ScheduledStepRunner:
    """Steps under a scheduler; the pipeline delivers rows, and the scheduler computes their features."""

    def __init__(
        self, batches: BatchIterator, work: TrainingWork, runtime: StepRuntime, stage: DownstreamStage
    ) -> None:
        """Use `Scheduling.open`."""
        self._batches = batches
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
            if self._work.rest is not None:  # rows lost behind the last good one
                self._row_stats, self._position = self._work.rest
            return None
        self._row_stats, self._position = trained.row_stats, trained.position
        wait_s = max(0.0, trained.computed_s - asked)
        first: StepResult = trained.parts[0][1]
        first.seconds["pull"] = max(0.0, trained.dense_s - max(asked, trained.computed_s))
        output = StepOutput(trained.parts, wait_s)
        left_s, self._left_s = self._left_s, perf_counter()
        self._stage.delivered(output.num_rows, wait_s, max(0.0, self._left_s - left_s - wait_s))
        return output

    def settle(self) -> None:
        """See `StepRunner`."""
        self._runtime.settle()

    def take_row_stats(self) -> RowStats:
        """See `StepRunner`."""
        row_stats, self._row_stats = self._row_stats, RowStats()
        return row_stats

    def state_dict(self) -> dict[str, Any]:
        """See `StepRunner`."""
        return self._position

    def counters(self, window_s: float) -> PipelineCounters:
        """See `StepRunner`."""
        return self._batches.counters(window_s)


def choose_policy(config: SchedulerConfig, model: nn.Module) -> Policy | None:
    """The scheduling policy of a job for this model and this process; None for the plain loop."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    alone = not distributed or torch.distributed.get_world_size() == 1
    return config.choose(remote=not all(_is_local(model)), alone=alone)


def feature_groups(plan: FeaturePlan, model: nn.Module, max_groups: int) -> FeatureGroups:
    """The feature groups of a job, closed under the tables of all its modules."""
    table_of = {
        name: {feature: table.name for table in bags.tables for feature in table.feature_names}
        for name, bags in embedding_bags(model).items()
    }

    def tables_of(feature: str) -> list[str]:
        return [f"{name}.{tables.get(feature, feature)}" for name, tables in table_of.items()]

    return group_features(plan, tables_of, max_groups=max_groups)


def _is_local(model: nn.Module) -> list[bool]:
    return [isinstance(bags.store, LocalStore) for bags in embedding_bags(model).values()]


class Scheduling:
    """A job's scheduler from window to window: it keeps what it has learned about the job.

    Attributes:
        policy: None for the plain loop.
    """

    def __init__(self, config: SchedulerConfig, model: nn.Module) -> None:
        """Choose a policy.

        Args:
            config: The job's section.
            model: Of the job; its stores as they will be in training.
        """
        self.policy = choose_policy(config, model)
        self._config = config
        self._model = model
        self._selector: StrategySelector | None = None

    @contextmanager
    def open(
        self,
        batches: BatchIterator,
        step: TrainingStep,
        plan: FeaturePlan,
        *,
        budget_bytes: int,
        folder: Path | None = None,
    ) -> Iterator[ScheduledStepRunner]:
        """Steps under the policy, until the context ends.

        Args:
            batches: Of rows, see `open_batches`.
            step: Trains.
            plan: Computes the features, with its grouping decided for these rows.
            folder: Where to leave the trace of the latest steps; None for nowhere.
            budget_bytes: Of batches between reading and training.
        """
        assert self.policy is not None, "the plain loop has no scheduler"
        config, model, policy = self._config, self._model, self.policy
        store_waits = not any(_is_local(model))
        groups = feature_groups(plan, model, self._max_groups(plan, store_waits))
        num_cores = config.threads or max(1, int(effective_cpus().count))
        selector = make_selector(policy, num_groups=len(groups), store_waits=store_waits, num_cores=num_cores)
        if self._selector is None or self._selector.strategies != selector.strategies:
            self._selector = selector
        self._selector.begin()
        spare_cores = max(0, num_cores - torch.get_num_threads())
        state = SchedulerState(
            len(groups),
            policy,
            num_cores=num_cores,
            spare_cores=spare_cores,
            store_waits=store_waits,
            budget_bytes=budget_bytes,
            selector=self._selector,
        )
        prefetches = isinstance(policy, BatchPrefetch)  # asked for by name, competing threads and all
        nothing_overlaps = not store_waits and len(groups) == 1 and spare_cores == 0 and not prefetches
        stage = batches.add_stage(FEATURES, num_cores)
        with (
            TrainingWork(batches, groups, model, step, stage=stage, verify=config.verify) as work,
            StepRuntime(work, state, is_inline=nothing_overlaps) as runtime,
        ):
            try:
                yield ScheduledStepRunner(batches, work, runtime, stage)
            finally:
                if folder is not None:
                    runtime.trace.write(folder / SCHEDULE_FILE, policy.name)

    def _max_groups(self, plan: FeaturePlan, store_waits: bool) -> int:
        """Parts of the plan. One where it looks for equal rows: parts would find others than the whole does.

        Gradients of equal rows are summed first, so the bits of parameters would depend on which way was faster.
        """
        if plan.grouping is None or plan.grouping.groups:
            return 1
        return self._config.max_groups or (MAX_GROUPS if store_waits else 1)
