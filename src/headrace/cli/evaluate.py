"""`headrace evaluate`: computes the metrics of a checkpoint on logs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    job: Annotated[Path, typer.Argument(help="Job file (YAML).")],
    logs: Annotated[str, typer.Argument(help="Logs to score: file, folder, glob or URL.")],
    checkpoint: Annotated[int | None, typer.Option(help="Checkpoint number [newest].")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Score logs with a checkpoint and print the metrics, without training.

    Example: headrace evaluate job.yaml logs/hour=13
    """
    from headrace.cli.tables import scores_table
    from headrace.messages import to_json
    from headrace.scoring import Scorer
    from headrace.training import JobConfig

    scorer = Scorer(JobConfig.from_file(job), checkpoint=checkpoint, on_message=partial(typer.echo, err=True))
    scores = scorer.evaluate(logs)
    if as_json:
        values = {"checkpoint": scorer.checkpoint, "step": scorer.step, "rows": scorer.rows.to_dict()}
        typer.echo(to_json(values | {"labels": {name: s.to_dict() for name, s in scores.items()}}))
    else:
        left_out = f"; {scorer.rows.num_bad:,} bad rows skipped" if scorer.rows.num_bad else ""
        typer.echo(f"checkpoint {scorer.checkpoint}, after {scorer.step:,} steps{left_out}")
        typer.echo(scores_table(scores))
