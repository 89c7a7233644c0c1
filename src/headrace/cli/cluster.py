"""`headrace cluster`: writes a copy of a log in which the rows of each session are adjacent."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

Option = typer.Option


def cluster(
    path: Annotated[str, typer.Argument(help="File, folder, glob or URL of Parquet files.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Output folder; new, or from an earlier run.")],
    layout: Annotated[
        str, Option(help="nested: one row per session, repeated values stored once; clustered: one row per impression.")
    ] = "nested",
    schema: Annotated[
        Path | None, Option(help="Schema of the log. By default, schema.yaml in the log's folder.", show_default=False)
    ] = None,
    session: Annotated[str | None, Option(help="Column with the session id. By default, the schema's.")] = None,
    user: Annotated[
        str | None, Option(help="Without a session column: user column from which sessions are derived.")
    ] = None,
    gap: Annotated[str, Option(help="Inactivity gap that starts a new session.")] = "30m",
    window: Annotated[
        str, Option(help="Boundaries that sessions never cross: folder, file or time (as the job's windows).")
    ] = "folder",
    every: Annotated[str | None, Option(help="Window length, with --window time.")] = None,
    sample: Annotated[float, Option(help="Fraction of sessions to keep; sessions are kept whole.")] = 1.0,
    seed: Annotated[int, Option(help="Seed that selects the sampled sessions.")] = 0,
    memory: Annotated[str, Option(help="Memory budget, excluding about 400 MB for Python.")] = "2GiB",
    rows_per_group: Annotated[int, Option(help="Rows per row group; fewer if rows are wide.")] = 65_536,
) -> None:
    """Write a copy of a log clustered by session, and verify every row. Run it again to add new logs.

    Example: headrace cluster logs clustered --layout nested
    """
    from headrace.errors import ConfigError
    from headrace.logs import Schema, check_output, list_log, schema_beside
    from headrace.logs.clustering import ClusterConfig, cluster_log
    from headrace.logs.footers import read_footer
    from headrace.messages import count_of
    from headrace.observe.progress import Progress
    from headrace.resources.quantities import format_bytes, parse_bytes

    listing = list_log(path)
    for note in listing.notes:
        typer.echo(note, err=True)
    check_output(out, path, what="OUT")
    if schema is None:
        schema = schema_beside(path)
        if schema is None:
            raise ConfigError(f"{path}: logs at a URL need a local schema file; give --schema")
        if not schema.is_file():
            raise ConfigError(
                f"{schema}: no such file; give --schema, or write one with: "
                f"headrace inspect {quote(path)} --write-schema {quote(str(schema))}"
            )
    values = {
        "layout": layout,
        "session": session,
        "user": user,
        "gap_s": parse_duration(gap, "--gap"),
        "window": window,
        "every_s": None if every is None else int(parse_duration(every, "--every")),
        "sample": sample,
        "seed": seed,
        "memory_bytes": parse_bytes(memory, where="--memory"),
        "rows_per_group": rows_per_group,
    }
    config = ClusterConfig.from_dict(values, where="cluster")
    total = 2 * sum(read_footer(file).num_rows for file in listing.files)  # counted when clustered and when verified
    with Progress("cluster", total=total) as progress:
        done = cluster_log(
            path,
            out,
            Schema.from_yaml(schema),
            config,
            on_rows=progress.advance,
            on_message=lambda text: typer.echo(text, err=True),
        )
    for result in done.windows:
        ratio = result.bytes_read / max(result.bytes_written, 1)
        typer.echo(
            f"{result.name}: {result.before.describe()}, verified; {result.num_sessions:,} sessions, "
            f"{format_bytes(result.bytes_read)} -> {format_bytes(result.bytes_written)} ({ratio:.2f}x)"
        )
    kept = f", {count_of(done.num_kept, 'file')} already done" if done.num_kept else ""
    rows = sum(result.before.num_rows for result in done.windows)
    typer.echo(f"{rows:,} rows in {count_of(len(done.windows), 'window')}, layout {layout}: {out}{kept}")


def parse_duration(text: str, where: str) -> float:
    """Parse a duration such as "45s", "30m", "2h", "1d" or a number of seconds."""
    from headrace.errors import ConfigError

    units = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1.0)
    try:
        seconds = float(number) * unit
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e12:
        raise ConfigError(f"{where}: given {text!r}, expected a duration such as 45s, 30m, 2h or 1d")
    return seconds
