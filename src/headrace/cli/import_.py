"""`headrace import`: converts logs in other formats to Parquet folders with a schema."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="import",
    help="Convert logs in other formats to Parquet.\n\nExample: headrace import criteo train.txt logs --parts 4",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Option = typer.Option
Out = Annotated[Path, typer.Argument(help="Output folder.")]


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
    typer.echo(", ".join([f"{done.rows:,} rows in {len(done.files)} files: {out}", *source, *bad]))


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
    from headrace.errors import ConfigError
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
