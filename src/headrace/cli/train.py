"""`headrace train`: one pass over what is new since the last checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    job: Annotated[Path, typer.Argument(help="Job file (YAML).")],
    windows: Annotated[int | None, typer.Option(min=1, help="Train on at most so many windows.")] = None,
    until: Annotated[
        str | None, typer.Option(help="Last window wanted: a folder or file name, a number of rows, or a time.")
    ] = None,
) -> None:
    """Train one pass over what is new since the last checkpoint.

    Each row is predicted before it is trained on, so the metrics are those of unseen data. Ctrl-C ends with a
    checkpoint; after a kill the same command goes on where the last checkpoint stands. Started by headrace launch or
    torchrun, it is one trainer of several.

    Example: headrace train job.yaml --windows 3
    """
    from headrace.cli.signals import stop_on_signals
    from headrace.cli.tables import window_table
    from headrace.cluster import train_job
    from headrace.observe.report import write_report
    from headrace.training import JobConfig

    with stop_on_signals() as stop:
        trainer, result = train_job(
            JobConfig.from_file(job), windows=windows, until=until, should_stop=lambda: stop.asked, say=typer.echo
        )
    if trainer.rank:  # the run's first trainer says it for all
        raise typer.Exit(130 if result.stopped else 0)
    if result.windows:
        typer.echo(window_table(result.windows))
    typer.echo(result.rest)
    if result.windows or result.stopped:
        typer.echo(f"report: {write_report(trainer.run_folder.path)}")
    if result.stopped:
        raise typer.Exit(130)
