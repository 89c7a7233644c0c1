"""`headrace export`: exports a model for serving."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer


def export(
    job: Annotated[Path, typer.Argument(help="Job file (YAML).")],
    out: Annotated[Path, typer.Argument(help="Output folder; must not exist.")],
    checkpoint: Annotated[int | None, typer.Option(help="Checkpoint number [newest].")] = None,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Also write the dense part of the model as ONNX, from pooled embeddings on.")
    ] = False,
) -> None:
    """Export a model for serving, and verify that the export gives the same scores.

    Example: headrace export job.yaml exported
    """
    from headrace.scoring import export_model
    from headrace.training import JobConfig

    on_message = partial(typer.echo, err=True)
    gap = export_model(JobConfig.from_file(job), out, checkpoint=checkpoint, onnx=onnx, on_message=on_message)
    typer.echo(f"exported and verified, logits differ by at most {gap:.2g}: {out}")
