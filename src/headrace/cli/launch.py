"""`headrace launch`: runs several trainers and shards on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def launch(
    job: Annotated[Path, typer.Argument(help="Job file (YAML).")],
    trainers: Annotated[int, typer.Option(min=1, help="Trainer processes; each takes a slice of every batch.")] = 1,
    shards: Annotated[int, typer.Option(min=0, help="Shard processes that hold the embeddings.")] = 1,
    max_restarts: Annotated[int, typer.Option(min=0, help="Maximum number of shard restarts, in total.")] = 3,
    windows: Annotated[int | None, typer.Option(min=1, help="Maximum number of windows to train on.")] = None,
    until: Annotated[str | None, typer.Option(help="Last window to train on, as for headrace train.")] = None,
    change_features: Annotated[
        bool, typer.Option("--change-features", help="Change the features of the run, as for headrace train.")
    ] = False,
) -> None:
    """Train a job with several processes on this machine.

    Starts shards and trainers, prefixes their output with their names, forwards Ctrl-C (trainers then stop with a
    checkpoint), and leaves no process behind. The job's batch size is that of one trainer: with T trainers, a step
    uses T times as many rows.

    Example: headrace launch job.yaml --trainers 2 --shards 2
    """
    from headrace.cli.signals import stop_on_signals
    from headrace.cluster.launcher import LaunchOptions
    from headrace.cluster.launcher import launch as start
    from headrace.errors import ConfigError
    from headrace.training import JobConfig

    if trainers > 1 and shards == 0:
        raise ConfigError(f"--shards 0 with --trainers {trainers}: expected at least one shard, to hold the embeddings")
    arguments = [f"--windows={windows}"] * (windows is not None) + [f"--until={until}"] * (until is not None)
    arguments += ["--change-features"] * change_features
    config = JobConfig.from_file(job)
    run = Path(config.run)
    options = LaunchOptions(trainers, shards, max_restarts, tuple(arguments), config.embeddings.storage)
    with stop_on_signals() as stop:
        code = start(job, run, options, should_stop=lambda: stop.asked, on_message=typer.echo)
    if code:
        raise typer.Exit(code)
