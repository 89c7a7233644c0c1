"""Opens the data of a job: its windows, as segments of one pipeline that makes batches from log rows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from headrace.embeddings import KeyedPlan, KeyLayout
from headrace.errors import ConfigError, HeadraceError
from headrace.features import FeaturePlan
from headrace.logs import ParquetSource, Window, find_windows
from headrace.logs.identity import relocate
from headrace.logs.source import ROW_ID, Source
from headrace.observe.decisions import DecisionLog
from headrace.pipeline import BatchIterator, GrowingSize, Pipeline, from_sources
from headrace.pipeline.engine.options import memory_budget
from headrace.tensors import Batch
from headrace.training.job import JobConfig
from headrace.training.process_group import ProcessGroup
from headrace.training.state import TrainingState
from headrace.user_code import load_function

__all__ = [
    "PlannedSources",
    "build_pipeline",
    "decide_groups",
    "find_new_windows",
    "first_batch",
    "open_batches",
    "read_window",
    "source_columns",
    "step_budget",
]

STEP_SHARE = 0.25
"""Scheduler's share of a job's memory budget, if it computes features: it holds a few batches and their rows; the
pipeline holds shuffle blocks and read-ahead."""


class _Opened(NamedTuple):
    source: Source
    plan: FeaturePlan


class PlannedSources:
    """The sources of a job, one per window, and the feature plan for each. Thread-safe.

    A source is opened on first use, and the grouping of its plan is then decided on its first rows. So the plan of a
    window depends only on its rows, and is the same in every run, resumed or not.

    Attributes:
        batch_size: Rows per batch.
        shuffled: Whether to shuffle rows as the job says; scoring keeps the log's order.
    """

    def __init__(
        self,
        job: JobConfig,
        plan: FeaturePlan,
        sources: Sequence[Callable[[], Source]],
        *,
        batch_size: int | GrowingSize,
        shuffled: bool = True,
    ) -> None:
        """Create the sources without opening them.

        Args:
            job: The job.
            plan: The job's feature plan.
            sources: Functions that open the sources.
            batch_size: See the attribute.
            shuffled: See the attribute.
        """
        self._job = job
        self._plan = plan
        self._sources = sources
        self.batch_size = batch_size
        self.shuffled = shuffled
        self._lock = threading.Lock()
        self._opened: dict[int, _Opened] = {}

    def __len__(self) -> int:
        return len(self._sources)

    def __getitem__(self, segment: int) -> Source:
        """The source of a window.

        Raises:
            HeadraceError: The logs cannot be used.
        """
        return self._open(segment).source

    def plan_of(self, segment: int) -> FeaturePlan:
        """The plan for the rows of a window."""
        return self._open(segment).plan

    def close(self, segment: int) -> None:
        """Release a source that will not be read again."""
        self._opened.pop(segment, None)

    def _open(self, segment: int) -> _Opened:
        if (opened := self._opened.get(segment)) is None:  # the lock is held while a source is opened
            with self._lock:
                if (opened := self._opened.get(segment)) is None:
                    source = self._sources[segment]()
                    plan = decide_groups(self._job, self._plan, source, shuffled=self.shuffled)
                    opened = self._opened[segment] = _Opened(source, plan)
        return opened


class _KeyedPlans:
    """The plan of each window, which also finds unique keys; see `SegmentPlans`."""

    def __init__(self, sources: PlannedSources, layouts: Sequence[KeyLayout]) -> None:
        self._sources = sources
        self._layouts = layouts
        self._latest: KeyedPlan | None = None

    def plan_of(self, segment: int) -> KeyedPlan:
        plan, latest = self._sources.plan_of(segment), self._latest
        if latest is None or latest.plan is not plan:
            latest = self._latest = KeyedPlan(plan, self._layouts)
        return latest


def open_batches(
    job: JobConfig,
    sources: PlannedSources,
    *,
    state: Mapping[str, Any] | None = None,
    transformed: bool = True,
    layouts: Sequence[KeyLayout] = (),
    window: int = 0,
    decisions: DecisionLog | None = None,
    rank: int = 0,
    num_ranks: int = 1,
) -> BatchIterator:
    """Start the pipeline of a job; see `build_pipeline` and `Pipeline.open`."""
    pipe = build_pipeline(job, sources, transformed=transformed, layouts=layouts, window=window)
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
    """The scheduler's part of a job's memory budget, for batches between reading and training."""
    return int(memory_budget(job.pipeline.memory) * STEP_SHARE)


def build_pipeline(
    job: JobConfig,
    sources: PlannedSources,
    *,
    transformed: bool = True,
    layouts: Sequence[KeyLayout] = (),
    window: int = 0,
) -> Pipeline:
    """Build the pipeline of a job; each source is a segment of it.

    Args:
        job: The job.
        sources: Sources to read.
        transformed: Whether batches are tensors; a scheduler takes rows, and computes features itself.
        layouts: Key layouts of the model's embeddings, for which workers also find the unique keys.
        window: Batches to prepare ahead at least, so that their keys are known.
    """
    pipe = _read(job, sources)
    if sources.shuffled and job.pipeline.shuffle is not None:
        shuffle, session = job.pipeline.shuffle, job.schema_of_logs.session_id
        if shuffle.by == "session" and session is None:
            raise ConfigError("pipeline.shuffle.by: given session, but the schema has no session_id")
        pipe = pipe.shuffle(num_rows=shuffle.num_rows, seed=shuffle.seed, by=shuffle.by, session=session)
    pipe = pipe.batch(sources.batch_size)
    if transformed:
        pipe = pipe.transform(_KeyedPlans(sources, layouts))
    return pipe.prefetch(max(job.pipeline.prefetch, window))


def first_batch(job: JobConfig, sources: PlannedSources, num_rows: int) -> Batch | None:
    """The features of the first rows of the log, not shuffled; None if there are none.

    Args:
        job: The job.
        sources: What it reads.
        num_rows: At most so many rows.
    """
    with _read(job, sources).batch(num_rows).transform(sources).open(executor="inline") as batches:
        return next(batches, None)


def _read(job: JobConfig, sources: PlannedSources) -> Pipeline:
    """Rows as the user's functions leave them."""
    pipe = from_sources(sources)
    for name in job.pipeline.map:
        pipe = pipe.map(load_function(name))
    for name in job.pipeline.filter:
        pipe = pipe.filter(load_function(name))
    return pipe


def find_new_windows(
    job: JobConfig,
    state: TrainingState,
    process_group: ProcessGroup,
    *,
    until: str | None,
    limit: int | None,
    on_message: Callable[[str], None],
) -> tuple[list[Window], str]:
    """Find the windows to train on, and describe the data left; trainer 0 searches for all.

    Args:
        job: The job, with the location of the logs.
        state: State of the run, with the cursor; a window in progress comes first.
        process_group: The trainers.
        until: Last window to train on, see `headrace.logs.plan_windows`.
        limit: Maximum number of windows; None for all.
        on_message: Called with notes on the logs.
    """
    started = [] if state.window is None else [state.window]
    found: tuple[list[dict[str, Any]], str] | None = None
    if process_group.rank == 0:
        new = find_windows(
            job.data.path,
            job.schema_of_logs,
            started[0].cursor_after if started else state.cursor,
            job.data.window,
            until=until,
            limit=None if limit is None else max(0, limit - len(started)),
        )
        for note in new.notes:
            on_message(note)
        ahead = [*(relocate(window, new.infos) for window in started), *new.windows]
        if process_group.size == 1:
            return ahead, new.rest
        found = [window.to_dict() for window in ahead], new.rest
    windows, rest = process_group.share(found)
    return [Window.from_dict(window) for window in windows], rest


def read_window(job: JobConfig, plan: FeaturePlan, window: Window) -> Source:
    """A source of a window's rows, with the columns that a job needs.

    Raises:
        HeadraceError: The files cannot be used.
    """
    columns = source_columns(job, plan)
    return ParquetSource(window.selections, job.schema_of_logs, columns=columns, policy=job.data.bad_rows)


def source_columns(job: JobConfig, plan: FeaturePlan, *, shuffled: bool = True) -> tuple[str, ...]:
    """Columns to read: those of the plan, or all columns of the schema if user functions may use them."""
    if job.pipeline.map or job.pipeline.filter:
        return job.schema_of_logs.columns
    shuffle, session = job.pipeline.shuffle if shuffled else None, job.schema_of_logs.session_id
    extra = [session] if session is not None and shuffle is not None and shuffle.by == "session" else []
    return tuple(dict.fromkeys([*(name for name in plan.columns if name != ROW_ID), *extra]))


def decide_groups(job: JobConfig, plan: FeaturePlan, source: Source, *, shuffled: bool = True) -> FeaturePlan:
    """The plan with its grouping decided on the first rows of the source; the same in every run."""
    if plan.dedup != "auto":
        return plan
    if shuffled and job.pipeline.shuffle is not None and job.pipeline.shuffle.by == "row":
        return plan.keep_plain(
            "rows are shuffled one by one, so equal ones do not stay together; see pipeline.shuffle.by"
        )
    sample = _first_rows(source)
    return plan if sample is None else plan.decide(sample)


def _first_rows(source: Source) -> pa.RecordBatch | None:
    """The first valid rows of a source; None if there are none, or if there is an error, which the pipeline reports."""
    try:
        batches = (batch for split in range(len(source)) for batch in source.read(split))
        return next((batch.rows for batch in batches if batch.rows.num_rows), None)
    except HeadraceError:
        return None
