"""Opens the pipeline of a job over a window: rows of the log in, batches out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from headrace.embeddings import KeyedPlan, KeyLayout
from headrace.errors import ConfigError, HeadraceError
from headrace.features import FeaturePlan
from headrace.logs.source import ROW_ID, Source
from headrace.observe.decisions import DecisionLog
from headrace.pipeline import BatchIterator, Pipeline, from_source
from headrace.pipeline.engine.options import memory_budget
from headrace.training.job import JobConfig
from headrace.user_code import load_function

__all__ = ["build_pipeline", "decide_groups", "open_batches", "source_columns", "step_budget"]

STEP_SHARE = 0.25
"""Of a job's memory budget, where a scheduler computes features: it holds a few batches and their rows, the pipeline
holds shuffle blocks and what is read ahead."""


def open_batches(
    job: JobConfig,
    plan: FeaturePlan,
    source: Source,
    *,
    state: Mapping[str, Any] | None = None,
    shuffled: bool = True,
    transformed: bool = True,
    layouts: Sequence[KeyLayout] = (),
    decisions: DecisionLog | None = None,
    rank: int = 0,
    num_ranks: int = 1,
) -> BatchIterator:
    """Start the pipeline a job file describes, over one source; see `build_pipeline` and `Pipeline.open`.

    The plan is used unchanged; call `decide_groups` first.
    """
    pipe = build_pipeline(job, plan, source, shuffled=shuffled, transformed=transformed, layouts=layouts)
    options = job.pipeline
    budget = memory_budget(options.memory)
    return pipe.open(
        workers=options.workers,
        tuner=options.tuner,
        memory_bytes=budget if transformed else budget - step_budget(job),
        executor=options.executor,
        state=state,
        decisions=decisions,
        rank=rank,
        num_ranks=num_ranks,
    )


def step_budget(job: JobConfig) -> int:
    """Of a job's memory budget, what a scheduler has for batches between reading and training."""
    return int(memory_budget(job.pipeline.memory) * STEP_SHARE)


def build_pipeline(
    job: JobConfig,
    plan: FeaturePlan,
    source: Source,
    *,
    shuffled: bool = True,
    transformed: bool = True,
    layouts: Sequence[KeyLayout] = (),
) -> Pipeline:
    """The pipeline a job file describes, over one source.

    Args:
        job: The job.
        plan: Its feature plan.
        source: What to read.
        shuffled: Whether to shuffle if the job says so; scoring keeps the order of the log.
        transformed: Whether batches are of tensors; a scheduler takes rows, and computes features itself.
        layouts: Of the model's embeddings: unique keys of tensors are found by the workers, too.
    """
    pipe = from_source(source)
    for name in job.pipeline.map:
        pipe = pipe.map(load_function(name))
    for name in job.pipeline.filter:
        pipe = pipe.filter(load_function(name))
    if shuffled and job.pipeline.shuffle is not None:
        shuffle, session = job.pipeline.shuffle, job.schema_of_logs.session_id
        if shuffle.by == "session" and session is None:
            raise ConfigError("pipeline.shuffle.by: given session, but the schema has no session_id")
        pipe = pipe.shuffle(num_rows=shuffle.num_rows, seed=shuffle.seed, by=shuffle.by, session=session)
    pipe = pipe.batch(job.training.batch_size)
    if transformed:
        pipe = pipe.transform(KeyedPlan(plan, layouts))
    return pipe.prefetch(job.pipeline.prefetch)


def source_columns(job: JobConfig, plan: FeaturePlan, *, shuffled: bool = True) -> tuple[str, ...]:
    """Columns to read: those of the plan, and all of the schema's where user functions might look at them."""
    if job.pipeline.map or job.pipeline.filter:
        return job.schema_of_logs.columns
    shuffle, session = job.pipeline.shuffle if shuffled else None, job.schema_of_logs.session_id
    extra = [session] if session is not None and shuffle is not None and shuffle.by == "session" else []
    return tuple(dict.fromkeys([*(name for name in plan.columns if name != ROW_ID), *extra]))


def decide_groups(
    job: JobConfig, plan: FeaturePlan, source: Source, *, shuffled: bool = True, decisions: DecisionLog | None = None
) -> FeaturePlan:
    """The plan, with its grouping decided on the first rows of the source: the same in every run over it."""
    if plan.dedup != "auto":
        return plan
    if shuffled and job.pipeline.shuffle is not None and job.pipeline.shuffle.by == "row":
        plan = plan.keep_plain(
            "rows are shuffled one by one, so equal ones do not stay together; see pipeline.shuffle.by"
        )
    else:
        sample = _first_rows(source)
        if sample is None:
            return plan
        plan = plan.decide(sample)
    if decisions is not None and plan.grouping is not None:
        decisions.record("features", {}, f"deduplication: {plan.grouping.reason}")
    return plan


def _first_rows(source: Source) -> pa.RecordBatch | None:
    """The first good rows of a source; None if there are none, or a bad one that the pipeline will tell of."""
    try:
        batches = (batch for split in range(len(source)) for batch in source.read(split))
        return next((batch.rows for batch in batches if batch.rows.num_rows), None)
    except HeadraceError:
        return None
