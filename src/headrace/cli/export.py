"""`headrace export`: the model for serving."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer


def export(
    job: Annotated[Path, typer.Argument(help="Job file (YAML).")],
    out: Annotated[Path, typer.Argument(help="Folder to write; must not exist.")],
    checkpoint: Annotated[int | None, typer.Option(help="Number of the checkpoint [newest].")] = None,
) -> None:
    """Write a model for serving, read it back, and check that it scores the same.

    Example: headrace export job.yaml exported
    """
    from headrace.scoring import export_model
    from headrace.training import JobConfig

    on_message = partial(typer.echo, err=True)
    gap = export_model(JobConfig.from_file(job), out, checkpoint=checkpoint, on_message=on_message)
    typer.echo(f"exported, read back, logits differ by at most {gap:.2g}: {out}")
