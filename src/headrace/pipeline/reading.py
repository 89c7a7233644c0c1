"""Where pipelines begin: `read_parquet`, `read_arrow`, `from_iterable`, `from_source`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from headrace.errors import ConfigError, expect
from headrace.logs import ArrowSource, BadRowPolicy, ParquetSource, Schema, Source, list_log, select_files
from headrace.pipeline.logical_plan import LogicalPlan
from headrace.pipeline.pipeline import Pipeline
from headrace.pipeline.sources import IterableSource, TableSource

__all__ = ["from_iterable", "from_source", "read_arrow", "read_parquet"]


def from_source(source: Source) -> Pipeline:
    """A pipeline that reads a `Source`."""
    return Pipeline(LogicalPlan(source))


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
    return Pipeline(LogicalPlan(source, session=schema.session_id))


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
        return from_source(TableSource(table))
    return Pipeline(LogicalPlan(ArrowSource(table, schema, policy=bad_rows), session=schema.session_id))


def from_iterable(batches: Iterable[Any] | Callable[[], Iterable[Any]], *, columns: Sequence[str] = ()) -> Pipeline:
    """A pipeline that reads batches of rows from anything that yields the same ones each time; see `IterableSource`."""
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
