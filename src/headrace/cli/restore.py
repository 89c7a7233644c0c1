"""`headrace restore`: takes a run back to an earlier checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def restore(
    run: Annotated[Path, typer.Argument(help="Run folder or job file; the run must not be training.")],
    version: Annotated[int, typer.Option(help="Number of the checkpoint, see: headrace checkpoints RUN")],
) -> None:
    """Take a run back to one of its checkpoints, from which training goes on.

    The checkpoint is read and checked first. Newer checkpoints and the output that belongs to them are moved to a
    folder in RUN/rewound, and nothing is deleted.

    Example: headrace restore job.yaml --version 7
    """
    from headrace.training.restoring import restore_version
    from headrace.training.run_folder import find_run

    for line in restore_version(find_run(run), version):
        typer.echo(line)
