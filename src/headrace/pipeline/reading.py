"""Functions that create pipelines: `read_parquet`, `read_arrow`, `from_iterable`, `from_source`, `from_sources`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from headrace.errors import ConfigError, expect
from headrace.logs import ArrowSource, BadRowPolicy, ParquetSource, Schema, Source, list_log, select_files
from headrace.logs.source import Sources
from headrace.pipeline.logical_plan import LogicalPlan
from headrace.pipeline.pipeline import Pipeline
from headrace.pipeline.sources import IterableSource, TableSource

__all__ = ["from_iterable", "from_source", "from_sources", "read_arrow", "read_parquet"]


def from_source(source: Source) -> Pipeline:
    """A pipeline that reads a `Source`."""
    return from_sources((source,))


def from_sources(sources: Sources) -> Pipeline:
    """A pipeline that reads several sources in order, each as a separate segment; see `LogicalPlan`.

    `BatchIterator.next_in_segment` tells where one ends.

    Args:
        sources: At least one.
    """
    if not len(sources):
        raise ConfigError("from_sources: given no sources, expected at least one")
    return Pipeline(LogicalPlan(sources))


def read_parquet(
    paths: str | Path | Sequence[str | Path],
    schema: Schema | str | Path,
    *,
    columns: Sequence[str] | None = None,
    bad_rows: BadRowPolicy | None = None,
) -> Pipeline:
    """A pipeline that reads whole Parquet logs once. Jobs that repeatedly read only new data use windows instead.

    A `UserWarning` lists entries of the folders that are not read, except hidden ones.

    Args:
        paths: Files or folders, read in the order of their names.
        schema: The schema, or the path of a YAML file with it; rows that violate it are bad rows.
        columns: Columns to read; None for all columns of the schema.
        bad_rows: How to handle bad rows; by default the first one raises.

    Raises:
        ConfigError: An argument has the wrong type, or the schema file cannot be read.
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
    return Pipeline(LogicalPlan((source,), session=schema.session_id))


def read_arrow(
    table: pa.Table, schema: Schema | str | Path | None = None, *, bad_rows: BadRowPolicy | None = None
) -> Pipeline:
    """A pipeline that reads an Arrow table in memory. With a schema its rows are checked; without, they are read as
    they are.

    Raises:
        ConfigError: An argument has the wrong type.
    """
    if not isinstance(table, pa.Table):
        raise ConfigError(f"read_arrow: table: given {type(table).__name__}, expected a pyarrow.Table")
    schema = None if schema is None else _schema_of("read_arrow", schema)
    if schema is None:
        return from_source(TableSource(table))
    return Pipeline(LogicalPlan((ArrowSource(table, schema, policy=bad_rows),), session=schema.session_id))


def from_iterable(batches: Iterable[Any] | Callable[[], Iterable[Any]], *, columns: Sequence[str] = ()) -> Pipeline:
    """A pipeline that reads batches from an iterable that yields the same ones on every pass; see `IterableSource`."""
    return from_source(IterableSource(batches, columns=columns))


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
