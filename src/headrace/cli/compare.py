"""`headrace compare`: compares two runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    first: Annotated[Path, typer.Argument(help="Run folder or job file.")],
    second: Annotated[Path, typer.Argument(help="Another run, to compare with the first.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Compare two runs: settings that differ, and the metrics and speed of each window and of all rows.

    Example: headrace compare runs/dlrm runs/dcnv2
    """
    from headrace.cli.tables import text_table
    from headrace.messages import to_json
    from headrace.observe.comparison import compare_runs
    from headrace.observe.run_data import RunData
    from headrace.training.run_folder import find_run

    folders = [find_run(place) for place in (first, second)]
    found = compare_runs(*(RunData.read(folder) for folder in folders))
    if as_json:
        typer.echo(to_json({"runs": [str(folder) for folder in folders], **found.to_dict()}, indent=2))
        return
    typer.echo(f"run 1: {folders[0]}\nrun 2: {folders[1]}\n")
    if found.settings:
        typer.echo(text_table(["setting", "run 1", "run 2"], found.settings) + "\n")
    else:
        typer.echo("the settings are the same\n")
    rows = found.window_rows()
    total = rows.pop() if all(found.whole) else None
    typer.echo(text_table(found.header(), rows, total))
    typer.echo(f"\n{found.verdict()}")
