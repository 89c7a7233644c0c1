"""`headrace report`: writes the report of a run again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(help="Run folder or job file; the run can still be training.")],
    out: Annotated[Path | None, typer.Option(help="HTML file to write. By default, report.html in the run.")] = None,
) -> None:
    """Write the report of a run, and print its windows, its metrics over all rows, and alarms.

    Example: headrace report job.yaml
    """
    from headrace.cli.tables import run_table
    from headrace.observe.alarms import find_alarms
    from headrace.observe.report import write_report
    from headrace.observe.run_data import RunData
    from headrace.training.run_folder import find_run

    folder = find_run(run)
    data = RunData.read(folder)
    if data.windows:
        typer.echo(run_table(data))
    for alarm in find_alarms(data):
        typer.echo(str(alarm))
    typer.echo(f"report: {write_report(folder, out)}")
