"""`headrace import`: converts logs in other formats to Parquet folders with a schema."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated, Any, Literal

import typer

from headrace.errors import ConfigError
from headrace.messages import count_of

app = typer.Typer(
    name="import",
    help="Convert logs in other formats to Parquet.\n\nExample: headrace import csv clicks.csv logs",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Option = typer.Option
Out = Annotated[Path, typer.Argument(help="Output folder.")]


BadLines = Annotated[str, Option(help="How to handle bad lines: fail, drop, or quarantine them in OUT-quarantine.")]
RowsPerFile = Annotated[int | None, Option(help="Maximum rows per file.")]
Lists = Annotated[
    list[str] | None,
    Option(
        "--list",
        help="COLUMN=SEPARATOR, once per column: split its texts there; COLUMN= for a column that is not a list.",
        show_default=False,
    ),
]
Types = Annotated[
    list[str] | None,
    Option(
        "--type",
        help="COLUMN=TYPE, once per column: integer, unsigned, number, boolean, time, text, integers, numbers, texts.",
        show_default=False,
    ),
]
Label = Annotated[
    str | None,
    Option(help="Condition on the columns, such as 'rating >= 4', that becomes the label; its columns are left out."),
]


@app.command()
def csv(
    path: Annotated[Path, typer.Argument(help="CSV or TSV: a file, folder or glob, plain or compressed.")],
    out: Out,
    delimiter: Annotated[str | None, Option(help="Separator of columns. By default, the most frequent one.")] = None,
    header: Annotated[
        bool | None,
        Option(
            "--header/--no-header",
            help="Whether the first line holds column names. By default, if none of its values is a number.",
        ),
    ] = None,
    names: Annotated[
        str | None, Option(help="Names of the columns, with commas between them, for files without a header.")
    ] = None,
    types: Types = None,
    lists: Lists = None,
    label: Label = None,
    bad_lines: BadLines = "fail",
    rows_per_file: RowsPerFile = None,
) -> None:
    """Import CSV files: DuckDB reads them, types are guessed, lists in texts (a|b|c) are split.

    Example: headrace import csv clicks.csv logs --list tags=;
    """
    _import_text(
        "csv",
        path,
        out,
        delimiter={"tab": "\t", "\\t": "\t"}.get(delimiter or "", delimiter),
        header=header,
        names=names.split(",") if names else (),
        types=types,
        lists=lists,
        label=label,
        bad_lines=bad_lines,
        rows_per_file=rows_per_file,
    )


@app.command()
def jsonl(
    path: Annotated[Path, typer.Argument(help="JSON lines: a file, folder or glob, plain or compressed.")],
    out: Out,
    types: Types = None,
    lists: Lists = None,
    label: Label = None,
    bad_lines: BadLines = "fail",
    rows_per_file: RowsPerFile = None,
) -> None:
    """Import JSON lines, one object per line: values of inner objects become columns, arrays become lists.

    Example: headrace import jsonl clicks.jsonl.gz logs
    """
    _import_text(
        "jsonl", path, out, types=types, lists=lists, label=label, bad_lines=bad_lines, rows_per_file=rows_per_file
    )


def _import_text(
    kind: Literal["csv", "jsonl"],
    path: Path,
    out: Path,
    *,
    types: list[str] | None,
    lists: list[str] | None,
    **options: Any,
) -> None:
    from headrace.logs.importers import TextConfig, import_text
    from headrace.observe.progress import Progress

    options |= {"types": _pairs(types, "--type"), "lists": _pairs(lists, "--list")}
    config = TextConfig.from_dict(options, where=f"import {kind}")
    with Progress("import") as progress:
        done = import_text(kind, path, out, config, on_rows=progress.advance)
    for note in done.notes:
        typer.echo(note)
    bad = []
    if done.num_bad:
        bad = [
            f"{count_of(done.num_bad, 'bad line')} {'dropped' if done.quarantine is None else f'in {done.quarantine}'}"
        ]
    typer.echo(", ".join([f"{done.rows:,} rows in {count_of(len(done.files), 'file')}: {out}", *bad]))
    typer.echo(f"next: headrace init {quote(str(out))}")


def _pairs(given: list[str] | None, option: str) -> dict[str, str]:
    """Options of the form NAME=VALUE."""
    found = {}
    for pair in given or ():
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise ConfigError(f"{option}: given {pair!r}, expected COLUMN=VALUE")
        found[name] = value
    return found


@app.command()
def criteo(
    path: Annotated[Path, typer.Argument(help="Text with 40 tab-separated columns: a file, tar archive or pipe.")],
    out: Out,
    parts: Annotated[int | None, Option(help="Number of equal files to split into, in file order.")] = None,
    rows_per_file: Annotated[int | None, Option(help="Maximum rows per file.")] = None,
    bad_lines: Annotated[
        str, Option(help="How to handle bad lines: fail, drop, or quarantine them in OUT-quarantine.")
    ] = "fail",
) -> None:
    """Import Criteo's display advertising log: label, 13 integers, 26 ids of 8 hex digits.

    Example: headrace import criteo train.txt.gz logs --parts 4
    """
    from headrace.logs.importers import CriteoConfig, import_criteo
    from headrace.observe.progress import Progress

    given: dict[str, Any] = {"parts": parts, "rows_per_file": rows_per_file, "bad_lines": bad_lines}
    config = CriteoConfig.from_dict(given, where="import criteo")
    size = path.stat().st_size if path.is_file() else None
    with Progress("import", total=size, unit="bytes") as progress:
        done = import_criteo(path, out, config, on_block=lambda read, rows: progress.update(read, {"rows": rows}))
    bad = [f"{done.dropped:,} bad lines dropped"] if done.dropped else []
    if done.quarantine is not None:
        bad.append(f"{done.quarantined:,} bad lines in {done.quarantine}")
    source = [f"read from {done.member} in {path}"] if done.member else []
    typer.echo(", ".join([f"{done.rows:,} rows in {count_of(len(done.files), 'file')}: {out}", *source, *bad]))


@app.command()
def clicks(
    path: Annotated[Path, typer.Argument(help="Folder or tar archive of hourly CSV files with a header.")],
    out: Out,
    negatives: Annotated[int, Option(help="Negatives (items not clicked) per click.")] = 4,
    negatives_by: Annotated[
        str,
        Option(
            help="popularity: drawn from the clicks of the previous hour; uniform: from the items of the previous day."
        ),
    ] = "popularity",
    history_length: Annotated[int, Option(help="Maximum items in a user's history.")] = 50,
    seed: Annotated[int, Option(help="Seed for drawing negatives.")] = 7,
    user: Annotated[str, Option(help="Column with the user id.")] = "user_id",
    session: Annotated[str, Option(help="Column with the session id.")] = "session_id",
    item: Annotated[str, Option(help="Column with the id of the clicked item.")] = "click_article_id",
    timestamp: Annotated[str, Option(help="Column with the time of the click.")] = "click_timestamp",
    unit: Annotated[str, Option(help="Unit of the timestamps since 1970-01-01 UTC: s, ms, us or ns.")] = "ms",
    context: Annotated[
        list[str] | None,
        Option(help="NAME=COLUMN, once per context column; '' for none.", show_default=False),
    ] = None,
) -> None:
    """Import a click log: each click becomes impressions of the clicked item and of sampled negatives.

    If the import was stopped, run it again: finished hours are kept, and the result is the same.

    Example: headrace import clicks clicks_hourly.tar.gz logs --negatives 4
    """
    from headrace.logs.importers import ClicksConfig, import_clicks
    from headrace.logs.importers.click_files import total_bytes
    from headrace.observe.progress import Progress

    given: dict[str, Any] = {
        "negatives": negatives,
        "negatives_by": negatives_by,
        "history_length": history_length,
        "seed": seed,
        "user": user,
        "session": session,
        "item": item,
        "timestamp": timestamp,
        "unit": unit,
    }
    if context is not None:
        pairs = [pair.partition("=") for pair in context if pair]
        for name, _, column in pairs:
            if not name or not column:
                raise ConfigError(f"--context: given {name!r}, expected NAME=COLUMN")
        given["context"] = {name: column for name, _, column in pairs}
    config = ClicksConfig.from_dict(given, where="import clicks")
    with Progress("import", total=total_bytes(path) or None, unit="bytes") as progress:
        done = import_clicks(
            path,
            out,
            config,
            on_hour=lambda read, so_far: progress.update(read, {"hours": so_far.hours, "rows": so_far.rows}),
        )
    kept = f" ({done.hours_kept} already finished)" if done.hours_kept else ""
    typer.echo(
        f"{done.rows:,} impressions of {done.clicks:,} clicks in {done.hours} hours{kept}, "
        f"{done.hours_skipped} hours without rows: {out}"
    )
