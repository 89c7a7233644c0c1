"""`headrace train`: makes one training pass over the rows added since the last checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def train(
    job: Annotated[Path, typer.Argument(help="Job file (YAML).")],
    windows: Annotated[int | None, typer.Option(min=1, help="Maximum number of windows to train on.")] = None,
    until: Annotated[
        str | None, typer.Option(help="Last window to train on: a folder or file name, a number of rows, or a time.")
    ] = None,
    change_features: Annotated[
        bool,
        typer.Option("--change-features", help="Add to or remove from the run the features that the job has or lacks."),
    ] = False,
) -> None:
    """Make one training pass over the rows added since the last checkpoint.

    Each row is predicted before it is trained on, so metrics are measured on unseen data. Ctrl-C stops with a
    checkpoint; after a kill, the same command resumes from the last checkpoint. A run that ends with an error
    still prints its table of windows and writes its report. Under headrace launch or torchrun, this process is one
    of several trainers.

    With --change-features, a run continues with the features of the job if its checkpoint has others. What was
    learned about features in both is kept; the output says what begins anew and what is dropped.

    Example: headrace train job.yaml --windows 3
    """
    from headrace.cli.results import RunResults
    from headrace.cli.signals import stop_on_signals
    from headrace.cluster import train_job
    from headrace.training import JobConfig

    config = JobConfig.from_file(job)
    results = RunResults(config.run)
    try:
        with stop_on_signals() as stop:
            trainer, result = train_job(
                config,
                windows=windows,
                until=until,
                change_features=change_features,
                should_stop=lambda: stop.asked,
                on_message=typer.echo,
                on_window=results.add,
            )
    except BaseException:
        if os.environ.get("RANK", "0") == "0":
            results.fail()
        raise
    if trainer.rank == 0:  # only the first trainer prints
        results.finish(result.rest, stopped=result.stopped)
    if result.stopped:
        raise typer.Exit(130)
