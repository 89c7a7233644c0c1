"""Opens the pipeline of a job over a window: rows of the log in, batches out."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from headrace.errors import ConfigError
from headrace.features import FeaturePlan
from headrace.logs.pieces import ROW_ID, Source
from headrace.observe.decisions import DecisionLog
from headrace.pipeline import Account, BatchIterator, Pipeline, from_source
from headrace.training.job import JobConfig
from headrace.training.rows import RowCounts

__all__ = ["build_pipeline", "count_rows", "load_function", "open_batches", "source_columns"]


def open_batches(
    job: JobConfig,
    plan: FeaturePlan,
    source: Source,
    *,
    state: Mapping[str, Any] | None = None,
    shuffled: bool = True,
    transformed: bool = True,
    decisions: DecisionLog | None = None,
) -> BatchIterator:
    """Start the pipeline a job file describes, over one source; see `build_pipeline` and `Pipeline.open`."""
    pipe = build_pipeline(job, plan, source, shuffled=shuffled, transformed=transformed)
    options = job.pipeline
    return pipe.open(
        workers=options.workers,
        tuner=options.tuner,
        memory_bytes=options.memory,
        executor=options.executor,
        state=state,
        decisions=decisions,
    )


def build_pipeline(
    job: JobConfig, plan: FeaturePlan, source: Source, *, shuffled: bool = True, transformed: bool = True
) -> Pipeline:
    """The pipeline a job file describes, over one source.

    Args:
        job: The job.
        plan: Its feature plan.
        source: What to read.
        shuffled: Whether to shuffle if the job says so; scoring keeps the order of the log.
        transformed: Whether batches are of tensors; a scheduler takes rows, and computes features itself.
    """
    pipe = from_source(source)
    for name in job.pipeline.map:
        pipe = pipe.map(load_function(name))
    for name in job.pipeline.filter:
        pipe = pipe.filter(load_function(name))
    if shuffled and job.pipeline.shuffle is not None:
        pipe = pipe.shuffle(num_rows=job.pipeline.shuffle.num_rows, seed=job.pipeline.shuffle.seed)
    pipe = pipe.batch(job.training.batch_size)
    return (pipe.transform(plan) if transformed else pipe).prefetch(job.pipeline.prefetch)


def source_columns(job: JobConfig, plan: FeaturePlan) -> tuple[str, ...]:
    """Columns to read: those of the plan, and all of the schema's where user functions might look at them."""
    if job.pipeline.map or job.pipeline.filter:
        return job.schema_of_logs.columns
    return tuple(name for name in plan.columns if name != ROW_ID)


def count_rows(account: Account) -> RowCounts:
    """What became of the rows of an account."""
    return RowCounts(
        read=account.num_read,
        used=account.num_delivered,
        filtered=account.num_filtered,
        dropped=account.num_dropped,
        quarantined=account.num_quarantined,
    )


def load_function(name: str) -> Callable[..., Any]:
    """A user's function from "package.module:function"; the working folder is searched too.

    Raises:
        ConfigError: There is no such module or function in it.
    """
    module_name, _, function_name = name.partition(":")
    if not function_name:
        raise ConfigError(f"pipeline: given {name!r}, expected package.module:function")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"pipeline: {name}: {error}") from error
    if not callable(function):
        raise ConfigError(f"pipeline: {name} is {type(function).__name__}, expected a function")
    return function  # type: ignore[no-any-return]
