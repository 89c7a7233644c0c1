"""`Pipeline`: a lazy chain of stages, described by method calls and run by `open`."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import ConfigError, expect
from headrace.logs import ArrowSource, BadRowPolicy, ParquetSource, Schema, Source, list_log, select_files
from headrace.pipeline.engine.decisions import DecisionRecorder
from headrace.pipeline.engine.explanation import Explanation
from headrace.pipeline.engine.rebatcher import CutSpec
from headrace.pipeline.sources import IterableSource, TableSource
from headrace.pipeline.transformations.operations import (
    BadRows,
    Combine,
    FilterRows,
    MapRows,
    Operation,
    Permute,
    Plan,
    ToDevice,
    Transform,
    takes_rng,
)

if TYPE_CHECKING:
    from headrace.pipeline.dataset import PipelineDataset
    from headrace.pipeline.engine.batch_iterator import BatchIterator

__all__ = ["Executor", "Pipeline", "Stage", "from_iterable", "from_source", "read_arrow", "read_parquet"]

Executor = Literal["thread", "process", "inline"]
"""Who runs a stage: threads of this process, worker processes (for Python that holds the GIL), or the consumer."""


@dataclass(frozen=True)
class Stage:
    """One stage of a pipeline.

    Attributes:
        name: Unique in the pipeline.
        kind: The method that added it.
        operation: What is done to each element.
        cut: How the stream is cut in front of the operation, for shuffle and batch.
        executor: Who runs it, or None for what `open` says.
        timeout_s: Longest time one element may take.
    """

    name: str
    kind: str
    operation: Operation
    cut: CutSpec | None = None
    executor: Executor | None = None
    timeout_s: float | None = None


@dataclass(frozen=True)
class Pipeline:
    """A source and the stages behind it. Immutable: each method returns a new pipeline.

    The sequence of batches is a function of (source, seeds, epoch) alone; see `open`.

    Attributes:
        source: Where rows come from.
        stages: In the order of the data.
        num_prefetch: Batches made ready ahead of the consumer.
        session: Column that tells sessions apart, if that is known.
    """

    source: Source
    stages: tuple[Stage, ...] = ()
    num_prefetch: int = 2
    session: str | None = None

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
        operation = MapRows(function, self._seed(function, seed), bad_rows)
        return self._with("map", operation, executor=executor, timeout_s=timeout_s, name=name)

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
        seeds = None if isinstance(predicate, pc.Expression) else self._seed(predicate, seed)
        operation = FilterRows(predicate, seeds, bad_rows)
        return self._with("filter", operation, executor=executor, timeout_s=timeout_s, name=name)

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
        _expect_count("shuffle", "num_rows", num_rows, at_least=1)
        _expect_count("shuffle", "seed", seed, at_least=0)
        if by not in ("row", "session"):
            raise ConfigError(f'shuffle: by: given {by!r}, expected "row" or "session"')
        if by == "session" and session is None:
            session = self.session
            if session is None:
                raise ConfigError(
                    'shuffle: by: given "session", but no schema names a session_id; '
                    'expected session="the column that tells sessions apart"'
                )
        operation = Permute(seed, session if by == "session" else None)
        return self._with("shuffle", operation, cut=CutSpec(num_rows), name=name)

    def batch(self, size: int, *, drop_last: bool = False, name: str = "") -> Pipeline:
        """Regroup rows into batches of exactly `size`, the last one smaller (or dropped, and counted as dropped)."""
        _expect_count("batch", "size", size, at_least=1)
        expect(drop_last, bool, where="batch: drop_last", expected="true or false")
        return self._with("batch", Combine(), cut=CutSpec(size, drop_last), name=name)

    def transform(
        self, plan: Plan, *, bad_rows: BadRows = "fail", timeout_s: float | None = None, name: str = ""
    ) -> Pipeline:
        """Turn each record batch into tensors with a feature plan; rows it raises on follow `bad_rows` as for `map`."""
        if not callable(getattr(plan, "apply", None)):
            raise ConfigError(
                f"transform: given {type(plan).__name__}, expected a plan with a method apply(record_batch)"
            )
        return self._with("transform", Transform(plan, bad_rows), timeout_s=timeout_s, name=name)

    def prefetch(self, num_batches: int) -> Pipeline:
        """Make up to this many batches ready ahead of the consumer, beside those in work."""
        _expect_count("prefetch", "num_batches", num_batches, at_least=0)
        return replace(self, num_prefetch=num_batches)

    def to_device(self, device: str, *, name: str = "") -> Pipeline:
        """Copy batches to a device ahead of the consumer; goes behind `transform`."""
        if not self._has_tensors:
            raise ConfigError("to_device: given record batches, expected tensors; call transform(plan) before it")
        return self._with("to_device", ToDevice(str(device)), name=name)

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
        from headrace.pipeline.engine.batch_iterator import BatchIterator, OpenOptions

        options = OpenOptions.check(
            self,
            workers=workers,
            memory_bytes=memory_bytes,
            executor=executor,
            epoch=epoch,
            rank=rank,
            num_ranks=num_ranks,
            decisions=decisions,
            tuner=tuner,
        )
        return BatchIterator(self, options, state)

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
        from headrace.pipeline.dataset import PipelineDataset

        return PipelineDataset(self, **options)

    @property
    def signature(self) -> tuple[str, ...]:
        """What a saved state must agree with: the stages that decide where rows go."""
        parts = [f"source of {len(self.source)} items"]
        for stage in self.stages:
            if isinstance(stage.operation, Permute) and stage.cut is not None:
                by = f" by {stage.operation.session}" if stage.operation.session is not None else ""
                parts.append(f"shuffle {stage.cut.num_rows} rows seed {stage.operation.seed}{by}")
            elif stage.kind in ("map", "filter", "batch"):
                parts.append(stage.kind)
        return tuple(parts)

    @property
    def num_cutters(self) -> int:
        """Stages that regroup rows."""
        return sum(stage.cut is not None for stage in self.stages)

    @property
    def _has_tensors(self) -> bool:
        return any(stage.kind == "transform" for stage in self.stages)

    def _with(self, kind: str, operation: Operation, *, name: str = "", **options: Any) -> Pipeline:
        if self._has_tensors and kind != "to_device":
            raise ConfigError(
                f"{kind}: comes behind transform, where rows are tensors already; put it before transform"
            )
        if options.get("executor") not in (None, "thread", "process"):
            raise ConfigError(f'{kind}: executor: given {options["executor"]!r}, expected "thread" or "process"')
        if getattr(operation, "bad_rows", None) not in (None, "fail", "drop", "quarantine"):
            raise ConfigError(
                f'{kind}: bad_rows: given {operation.bad_rows!r}, expected "fail", "drop" or "quarantine"'
            )
        timeout_s = options.get("timeout_s")
        if timeout_s is not None and not timeout_s > 0:
            raise ConfigError(f"{kind}: timeout_s: given {timeout_s!r}, expected a number of seconds above 0")
        taken = {"source", *(stage.name for stage in self.stages)}
        if name in taken or "+" in name or "." in name:
            raise ConfigError(f'{kind}: name: given {name!r}, expected a name not used before, without "+" and "."')
        if not name:
            names = (kind, *(f"{kind}{number}" for number in range(2, len(taken) + 2)))
            name = next(free for free in names if free not in taken)
        return replace(self, stages=(*self.stages, Stage(name, kind, operation, **options)))

    def _seed(self, function: Callable[..., Any], seed: int) -> tuple[int, ...] | None:
        """Two stages draw different numbers from the same seed: their positions are mixed in."""
        if not callable(function):
            raise ConfigError(f"expected a function of a record batch, given {type(function).__name__}")
        _expect_count("map or filter", "seed", seed, at_least=0)
        return (seed, len(self.stages)) if takes_rng(function) else None


def from_source(source: Source) -> Pipeline:
    """A pipeline that reads a `Source`."""
    return Pipeline(source)


def read_parquet(
    paths: str | Path | Sequence[str | Path],
    schema: Schema | str | Path,
    *,
    columns: Sequence[str] | None = None,
    bad_rows: BadRowPolicy | None = None,
) -> Pipeline:
    """A pipeline that reads whole Parquet logs once; a job that comes back for what is new uses windows instead.

    Entries of the folders that are neither read nor hidden by their names are named in a `UserWarning`.

    Args:
        paths: Files or folders, read in the order of their names.
        schema: What the columns are, or the YAML file that says so; rows that do not keep to it are bad.
        columns: Those to read; None for all the schema names.
        bad_rows: What to do with bad rows; the default fails at the first.

    Raises:
        ConfigError: An argument is of another type, or the schema's file cannot be read.
        DataError: A file cannot be read or lacks a column.
    """
    schema = _schema_of("read_parquet", schema)
    several = [paths] if isinstance(paths, str | Path) else list(_expect_paths("read_parquet", paths))
    listings = [list_log(str(path)) for path in several]
    for note in (note for listing in listings for note in listing.notes):
        warnings.warn(note, stacklevel=2)
    files = [file for listing in listings for file in listing.files]
    expect(bad_rows, (BadRowPolicy, type(None)), where="read_parquet: bad_rows", expected="a BadRowPolicy")
    source = ParquetSource(select_files(files), schema, columns=columns, policy=bad_rows)
    return Pipeline(source, session=schema.session_id)


def read_arrow(
    table: pa.Table, schema: Schema | str | Path | None = None, *, bad_rows: BadRowPolicy | None = None
) -> Pipeline:
    """A pipeline that reads an Arrow table in memory: checked if there is a schema, else as it is.

    Raises:
        ConfigError: An argument is of another type.
    """
    if not isinstance(table, pa.Table):
        raise ConfigError(f"read_arrow: table: given {type(table).__name__}, expected a pyarrow.Table")
    schema = None if schema is None else _schema_of("read_arrow", schema)
    if schema is None:
        return Pipeline(TableSource(table))
    return Pipeline(ArrowSource(table, schema, policy=bad_rows), session=schema.session_id)


def from_iterable(batches: Iterable[Any] | Callable[[], Iterable[Any]], *, columns: Sequence[str] = ()) -> Pipeline:
    """A pipeline that reads batches of rows from anything that yields the same ones each time; see `IterableSource`."""
    return Pipeline(IterableSource(batches, columns=columns))


def _schema_of(function: str, schema: object) -> Schema:
    if isinstance(schema, str | Path):
        return Schema.from_yaml(schema)
    if not isinstance(schema, Schema):
        raise ConfigError(
            f"{function}: schema: given {type(schema).__name__}, expected a Schema or the path of a schema.yaml"
        )
    return schema


def _expect_paths(function: str, paths: object) -> Sequence[str | Path]:
    if not isinstance(paths, list | tuple) or not all(isinstance(path, str | Path) for path in paths):
        raise ConfigError(f"{function}: paths: given {type(paths).__name__}, expected a path or a list of paths")
    return paths


def _expect_count(stage: str, name: str, value: object, *, at_least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ConfigError(f"{stage}: {name}: given {value!r}, expected a whole number from {at_least} on")
