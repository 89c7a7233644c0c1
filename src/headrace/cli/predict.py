"""`headrace predict`: writes the predictions of a checkpoint on logs as Parquet."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer


def predict(
    job: Annotated[Path, typer.Argument(help="Job file (YAML).")],
    logs: Annotated[str, typer.Argument(help="Logs to score: file, folder, glob or URL.")],
    out: Annotated[Path, typer.Argument(help="Parquet file to write.")],
    checkpoint: Annotated[int | None, typer.Option(help="Checkpoint number [newest].")] = None,
) -> None:
    """Score logs with a checkpoint and write one row per prediction: row id, file, row, p_LABEL.

    The logs do not need labels. A label that is a number is predicted as pred_LABEL.

    Example: headrace predict job.yaml logs/hour=13 scores.parquet
    """
    from headrace.errors import ConfigError
    from headrace.scoring import Scorer
    from headrace.training import JobConfig

    if out.resolve() == job.resolve():
        raise ConfigError(f"{out}: is the job file; choose another output file")

    scorer = Scorer(JobConfig.from_file(job), checkpoint=checkpoint, on_message=partial(typer.echo, err=True))
    num_rows = scorer.predict(logs, out)
    left_out = f"; {scorer.rows.num_bad:,} bad rows skipped" if scorer.rows.num_bad else ""
    typer.echo(f"{num_rows:,} predictions: {out}{left_out}")
