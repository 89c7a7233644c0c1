"""`headrace checkpoints`: lists the checkpoints of a run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def checkpoints(
    run: Annotated[Path, typer.Argument(help="Run folder or job file; the run can still be training.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Also read all files, and check them.")] = False,
) -> None:
    """List the checkpoints of a run: their sizes, and what each holds.

    "own" are the bytes that were written for a checkpoint alone, "restore" those that are read to restore it. With
    --verify, a damaged file is an error.

    Example: headrace checkpoints job.yaml
    """
    from headrace.cli.tables import text_table
    from headrace.errors import CheckpointError
    from headrace.training.checkpoint import CheckpointFolder
    from headrace.training.checkpoint_list import list_checkpoints
    from headrace.training.run_folder import RunFolder, find_run

    folder = RunFolder(find_run(run)).checkpoints
    found = list_checkpoints(folder)
    if as_json:
        typer.echo(json.dumps([asdict(each) for each in found], indent=1))
    elif not found:
        typer.echo(f"{folder}: no checkpoint yet")
    else:
        header = ("checkpoint", "step", "window", "kind", "changed rows", "own MB", "restore MB", "segments")
        rows = [
            (
                str(each.number),
                f"{each.step:,}",
                each.window,
                str(each.kind),
                "-" if each.changed_rows is None else f"{each.changed_rows:,}",
                f"{each.own_bytes / 1e6:,.1f}",
                f"{each.restore_bytes / 1e6:,.1f}",
                str(each.num_segments),
            )
            for each in found
            if each.refused is None
        ]
        typer.echo(text_table(header, rows))
        for each in found:
            if each.refused is not None:
                typer.echo(f"checkpoint {each.number}: refused: {each.refused}")
    damaged = [each.refused for each in found if each.refused is not None]
    for each in found if verify else ():
        try:
            CheckpointFolder(folder).load(each.number)
        except CheckpointError as error:
            if each.refused is None:
                typer.echo(f"checkpoint {each.number}: refused: {error}", err=True)
            damaged.append(str(error))
    if verify and damaged:
        raise typer.Exit(2)
