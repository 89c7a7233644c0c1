"""`headrace explain`: shows the bottleneck of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

NUM_DECISIONS = 10
"""Number of newest decisions shown; the report has all."""


def explain(
    run: Annotated[Path, typer.Argument(help="Run folder or job file; the run can still be training.")],
    trace: Annotated[
        Path | None,
        typer.Option(help="File for a trace of the latest scheduled steps, for about:tracing or Perfetto."),
    ] = None,
) -> None:
    """Show where a run's time went, its bottleneck over all windows, and the tuner's changes with reasons.

    Example: headrace explain job.yaml
    """
    import numpy as np

    from headrace.cli.tables import text_table
    from headrace.observe.deduplication import deduplication_rows
    from headrace.observe.run_data import RunData
    from headrace.training.run_folder import find_run
    from headrace.tuning.run_limit import limit_of_run

    run = find_run(run)
    data = RunData.read(run)
    if trace is not None:
        _write_trace(data.schedule, run, trace)
    seconds = {part: float(np.nansum(data.column(f"seconds.{part}"))) for part in data.names_below("seconds")}
    total = sum(seconds.values())
    if not total:
        typer.echo(f"{run}: no steps recorded yet")
        return
    parts = sorted(seconds.items(), key=lambda part: -part[1])
    rows = [[name.replace("_", " "), f"{value:.2f}", f"{value / total:.1%}"] for name, value in parts]
    typer.echo(text_table(["phase of the step", "seconds", "share"], rows))
    saved = deduplication_rows(data)
    if saved:
        typer.echo("\n" + text_table(["deduplication", "without", "with", "factor"], saved))
    tables = _rows_of_tables(data)
    if tables:
        typer.echo("\n" + text_table(["table under the budget", "rows", "gained", "lost"], tables))
    found = [decision.snapshot for decision in data.decisions if decision.who == "explain"]
    if found:
        limit = limit_of_run(found) if "starved_s" in found[-1] else None  # older runs have no times
        example = found[-1] if limit is None else limit.example
        if limit is not None:
            typer.echo(f"\n{limit}")
        if example is not None:
            typer.echo(f"\n{example['text']}")
    decisions = [decision for decision in data.decisions if decision.who != "explain"]
    if decisions:
        typer.echo(f"\ndecisions (newest {min(NUM_DECISIONS, len(decisions))} of {len(decisions)}):")
    for decision in decisions[-NUM_DECISIONS:]:
        typer.echo(f"{decision.time_s:8.1f} s  {decision}")


def _rows_of_tables(data: Any) -> list[list[str]]:
    """Rows of each table under a budget, and what it gained and lost in the latest process, by descending rows."""
    tables = []
    for name in data.names_below("budget"):
        latest = [data.column(f"budget.{name}.{key}")[-1] for key in ("rows", "gained", "lost")]
        if latest[0] == latest[0]:  # not NaN, as after a resume without a budget
            tables.append((name, *(int(value) for value in latest)))
    tables.sort(key=lambda table: -table[1])
    return [[name, *(f"{value:,}" for value in values)] for name, *values in tables]


def _write_trace(schedule: dict[str, Any] | None, run: Path, path: Path) -> None:
    from headrace.errors import ConfigError
    from headrace.scheduling.trace import write_chrome_trace

    if schedule is None:
        raise ConfigError(
            f"{run}: has no trace of steps; only jobs with a scheduler write one, for example scheduler: recs"
        )
    write_chrome_trace(schedule, path)
    typer.echo(f"{path}: the latest steps under {schedule['policy']}\n")
