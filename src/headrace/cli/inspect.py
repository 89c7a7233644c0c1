"""`headrace inspect`: summarizes a log and guesses a schema for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["inspect"]


def inspect(
    path: Annotated[str, typer.Argument(help="File, folder, glob or URL of Parquet files.", show_default=False)],
    schema: Annotated[
        Path | None,
        typer.Option("--schema", help="Check against this schema. By default, schema.yaml in the log's folder."),
    ] = None,
    write_schema: Annotated[
        Path | None, typer.Option("--write-schema", help="Guess a schema and write it as YAML to this file.")
    ] = None,
    budget: Annotated[
        bool, typer.Option("--budget", help="Also show what embedding tables of several sizes would hold.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Summarize a log: columns, skew, sessions, row groups, bad rows.

    Example:

        headrace inspect logs/ --write-schema schema.yaml
    """
    import sys

    from rich.console import Console

    from headrace.errors import ConfigError
    from headrace.files import write_text
    from headrace.logs import list_log, schema_beside
    from headrace.logs.inspection import inspect_log, print_budget_sizes, print_inspection, schema_to_yaml
    from headrace.logs.schema import Schema
    from headrace.messages import to_json
    from headrace.paths import local_path

    listing = list_log(path)
    for note in listing.notes:
        typer.echo(note, err=True)
    if write_schema is not None and any(write_schema.resolve() == Path(file.path).resolve() for file in listing.files):
        raise ConfigError(f"--write-schema: {write_schema} is one of the log files; choose another file")
    beside = schema_beside(path)
    if schema is None and write_schema is None and beside is not None and beside.is_file():
        schema = beside
        typer.echo(f"checked against {schema}; --write-schema writes a new guess", err=True)
    given = Schema.from_yaml(schema) if schema is not None else None
    found = inspect_log(path, schema=given)
    if as_json:
        typer.echo(to_json(found.to_dict(), indent=2))
    else:
        # In a pipe, rich would use 80 columns, but the tables need 120.
        console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
        print_inspection(found, console)
        if budget:
            print_budget_sizes(found, console)
    if write_schema is not None:
        if found.schema is None:
            raise ConfigError(f"{path}: no schema written, because no column looks like a label (0 and 1)")
        write_text(local_path(write_schema, where="--write-schema"), schema_to_yaml(found.schema, found.guesses))
        typer.echo(f"wrote {write_schema}", err=True)
