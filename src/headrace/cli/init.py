"""`headrace init`: writes a schema and a job file for a log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["init"]


def init(
    path: Annotated[
        str,
        typer.Argument(
            metavar="LOGS",
            help="File, folder, glob or URL of Parquet files; or CSV, TSV or JSON lines, which are converted first.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for job.yaml, schema.yaml and converted logs.")] = Path(),
    schema: Annotated[
        Path | None,
        typer.Option(help="Use this schema. By default, schema.yaml in the log's folder if there is one, or a guess."),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            help="Column that is the label, instead of a guess: of 0 and 1, or of numbers to predict. CSV, TSV, JSON "
            "lines: also a condition such as 'rating >= 4', which becomes the label."
        ),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Column to leave out of the schema; repeat the option for several."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite job.yaml and schema.yaml.")] = False,
) -> None:
    """Write a schema and a job file for a log, with the reason for every choice, ready to train.

    Example: headrace init logs
    """
    import os
    import shutil
    from shlex import quote

    from headrace.errors import ConfigError
    from headrace.files import writing
    from headrace.logs import check_output, list_log
    from headrace.logs.files import printable
    from headrace.logs.importers import LABEL, text_kind
    from headrace.logs.inspection import rank_numbers
    from headrace.paths import local_logs, local_path
    from headrace.training.first_job import choose_job, job_notes

    out = local_path(out, where="--out")
    job_path, schema_path = out / "job.yaml", out / "schema.yaml"
    if job_path.exists() and not force:
        raise ConfigError(f"{job_path}: exists already; --force overwrites it, or choose another folder with --out")
    kind = text_kind(path)
    is_condition = kind is not None and label is not None and not label.isidentifier()
    given = printable(path)
    if kind is not None:
        _refuse_roles(schema, None if is_condition else label, ignore)
        path = _convert(kind, path, label if is_condition else None, out)
    for note in list_log(path).notes:
        typer.echo(note, err=True)
    check_output(job_path, path, what="job.yaml")
    schema = schema or _schema_beside(path, schema_path, force=force)
    _refuse_roles(schema, None if is_condition else label, ignore)
    try:
        found = _inspect(path, schema, LABEL if is_condition else label, ignore or [], where=given)
    except ConfigError:
        if kind is not None:
            shutil.rmtree(path)  # the same command with another label converts the log again
        raise
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    _write_schema(found, schema, schema_path, printable(path))
    logs, schema = local_logs(path), schema or schema_path
    rankings = rank_numbers(path, found.schema)
    choices = choose_job(
        found,
        path=path if logs is None else os.path.relpath(logs, out),
        schema=os.path.relpath(schema, out),
        rankings=rankings,
    )
    notes = job_notes(found, path=printable(path), rankings=rankings)
    _write_job(job_path, choices, notes)
    _show(job_path, choices, notes)
    typer.echo(f"next: headrace train {quote(str(job_path))}")


def _write_job(path: Path, choices: list[Any], notes: list[str]) -> None:
    from headrace.files import write_text
    from headrace.training.first_job import job_to_yaml

    rest = "All other values are defaults, see docs/job-file.md."
    if not any(choice.key[0] == "features" for choice in choices):
        rest += " Without a section `features`, every column is a feature."
    title = "Written by headrace init. Train with: headrace train job.yaml"
    write_text(path, job_to_yaml(choices, title=title, notes=[*notes, rest]))


def _write_schema(found: Any, given: Path | None, written: Path, where: str) -> None:
    """Write the schema of an inspected log unless it was given, and say what it is."""
    from headrace.files import write_text
    from headrace.logs.inspection import schema_to_yaml
    from headrace.messages import count_of

    means = {profile.name: profile.mean for profile in found.profiles if profile.mean is not None}
    labels = [label for label in found.schema.labels if label.name in means]
    levels = [
        f"label {'mean' if label.is_regression else 'rate'}: {label.name} {means[label.name]:.4f}" for label in labels
    ]
    typer.echo(", ".join([f"{where}: {found.num_rows:,} rows", *levels]))
    for label in labels:
        if label.is_regression:
            typer.echo(
                f"{label.name} has values other than 0 and 1, so it is a number: a regression with squared error. For "
                f"clicks, make a label of 0 and 1, for instance of {label.name} >= {means[label.name]:.3g}"
            )
    if given is not None:
        typer.echo(f"schema: {given}")
        return
    write_text(written, schema_to_yaml(found.schema, found.guesses))
    parts = (found.schema.ids, "id"), (found.schema.id_lists, "id list"), (found.schema.dense, "number")
    counts = ", ".join(count_of(len(columns), noun) for columns, noun in parts if columns)
    typer.echo(f"wrote {written}: {counts}; the reason for each is in it")


def _show(job_path: Path, choices: Any, notes: list[str]) -> None:
    """Show the choices of a job file that was written, and notes on the log; numbers as features are only counted."""
    from headrace.cli.tables import wrapped
    from headrace.messages import count_of

    numbers = [choice for choice in choices if choice.key[:2] == ("features", "dense")]
    typer.echo(f"wrote {job_path}:")
    for choice in choices:
        if choice not in numbers:
            typer.echo(f"  {choice}")
            typer.echo(wrapped(choice.reason, indent=6))
    if numbers:
        typer.echo(f"  features.dense: {count_of(len(numbers), 'feature')}; the reason for each is in the file")
    for note in notes:
        typer.echo(note)


def _schema_beside(path: str, written: Path, *, force: bool) -> Path | None:
    """The schema in the log's folder; None if there is none, so that one is guessed and written.

    Raises:
        ConfigError: There is a file where it would be written, which is not to be overwritten.
    """
    from shlex import quote

    from headrace.errors import ConfigError
    from headrace.logs import schema_beside

    beside = schema_beside(path)
    if beside is not None and beside.is_file() and beside.resolve() != written.resolve():
        return beside
    if written.exists() and not force:
        raise ConfigError(f"{written}: exists already; --force overwrites it, --schema {quote(str(written))} uses it")
    return None


def _refuse_roles(schema: Path | None, label: str | None, ignore: list[str] | None) -> None:
    """Refuse options that say the role of columns beside a schema, which does.

    Raises:
        ConfigError: There are such options, and a schema.
    """
    from headrace.errors import ConfigError

    if schema is not None and (label is not None or ignore):
        option = "--ignore" if label is None else "--label"
        raise ConfigError(f"{option}: the schema {schema} says the role of each column; change it there")


def _inspect(path: str, schema: Path | None, label: str | None, ignore: list[str], *, where: str) -> Any:
    """Inspect a Parquet log with a schema, or with what is known of its columns; `where` is its name in errors.

    Raises:
        ConfigError: It has no label, or other columns than the given ones.
    """
    from headrace.errors import ConfigError
    from headrace.logs import Schema
    from headrace.logs.inspection import inspect_log

    if schema is not None:
        return inspect_log(path, schema=Schema.from_yaml(schema))
    found = inspect_log(path, label=label, ignore=ignore)
    if found.schema is None:
        raise ConfigError(
            f"{where}: no column looks like a label (0 and 1): name it with --label, write a schema and give "
            "it with --schema, or make a label of other columns of CSV and JSON lines with --label 'rating >= 4'"
        )
    return found


def _convert(kind: Any, path: str, label: str | None, out: Path) -> str:
    """Convert a text log to a folder in `out`, and say what was read how; `label` is a condition for the label."""
    from shlex import quote

    from headrace.errors import ConfigError
    from headrace.logs.importers import TextConfig, import_text
    from headrace.observe.progress import Progress

    logs = out / "logs"
    if logs.resolve() == Path(path).resolve():
        logs = out / "logs-parquet"
    if logs.is_dir() and any(logs.iterdir()):
        raise ConfigError(
            f"{logs}: is not empty, expected a new folder for the converted logs; "
            f"if they are there already: headrace init {quote(str(logs))} --out {quote(str(logs.parent))}"
        )
    with Progress("import") as progress:
        done = import_text(kind, path, logs, TextConfig(label=label), on_rows=progress.advance)
    for note in done.notes:
        typer.echo(note)
    typer.echo(f"converted to Parquet: {logs}; other options: headrace import {kind} --help")
    return str(logs)
