"""`headrace replay`: trains on quarantined rows after a fix."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def replay(job: Annotated[Path, typer.Argument(help="Job file (YAML), with the corrected schema.")]) -> None:
    """Train on quarantined rows after you have corrected the schema or the quarantine files.

    Rows that are still bad stay in the quarantine.

    Example: headrace replay job.yaml
    """
    from headrace.cli.signals import stop_on_signals
    from headrace.training import JobConfig, Trainer

    with stop_on_signals() as stop:
        trainer = Trainer(JobConfig.from_file(job), should_stop=lambda: stop.asked, on_message=typer.echo)
        result = trainer.replay()
    if result is None:
        typer.echo(f"{trainer.run_folder.quarantine}: no quarantined rows")
        return
    rows = result.rows
    counts = f"{rows.num_used:,} used, {rows.num_dropped:,} dropped, {rows.num_quarantined:,} still bad"
    typer.echo(f"{rows.num_read:,} rows replayed: {counts}")
