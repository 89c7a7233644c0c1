"""`headrace placement`: replays placement policies over a log, and shows what cache is needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from headrace.placement.replay import RowStream, Setting
    from headrace.placement.replay.comparison import CacheNeeds, Comparison
    from headrace.training import JobConfig
    from headrace.training.log_rows import LogRows

NUM_SIZES, NUM_PLOTTED = 8, 60
"""Cache sizes in the table and in the plot."""


def placement(
    path: Annotated[
        str,
        typer.Argument(
            metavar="JOB|LOGS",
            help="Job file (YAML), or Parquet logs, whose columns all become features.",
            show_default=False,
        ),
    ],
    trainers: Annotated[int, typer.Option(help="Number of trainers.", min=1, max=62)] = 1,
    batch_size: Annotated[int, typer.Option(help="Samples per trainer and step.", min=1)] = 2048,
    steps: Annotated[int, typer.Option(help="Maximum number of steps.", min=1)] = 300,
    window: Annotated[int, typer.Option(help="Batches that are known ahead.", min=1)] = 200,
    cache: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SIZE",
            help="Cache per trainer, in rows (100000) or bytes (2GiB); repeat the option for several [no limit].",
        ),
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Policy to replay, or all; repeat the option for several [the usual ones]."),
    ] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="No row was trained before this log, so first reads move nothing.")
    ] = False,
    embedding_dim: Annotated[int | None, typer.Option(help="Dimension of rows, for logs without a job [16].")] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="File for all results as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(help="File for the miss-ratio curve as an HTML page.")] = None,
) -> None:
    """Show what rows would move with each placement policy, and what cache a trainer needs, without training.

    Example: headrace placement job.yaml --trainers 2 --cache 100000
    """
    from headrace.files import write_text
    from headrace.messages import to_json
    from headrace.observe.progress import Progress
    from headrace.paths import local_path
    from headrace.placement.replay import Kind, Setting
    from headrace.placement.replay.comparison import cache_needs, compare_policies, default_policies, find_policy
    from headrace.registry import PLACEMENT_POLICIES

    names = policy or default_policies(trainers)
    names = list(PLACEMENT_POLICIES) if names == ["all"] else names
    for name in names:
        find_policy(name)
    sizes = [_size_of(size) for size in cache or ()]
    rows = _read(_job_of(path, embedding_dim), trainers * batch_size, steps)
    stream = rows.stream
    setting = Setting(
        stream.num_rows, trainers, stream.num_samples, window, None, rows.row_bytes, from_scratch=from_scratch
    )
    row_bytes = rows.row_bytes.of(Kind.FETCH)
    capacities = [max(1, size // (1 if is_rows else row_bytes)) for size, is_rows in sizes] if sizes else [None]
    with Progress("replay", total=len(names) * len(capacities) * len(stream), unit="steps") as progress:
        found = compare_policies(stream, names, setting, capacities, on_step=progress.update)
    needs = cache_needs(stream, trainers, window, NUM_SIZES, geometric=True)
    typer.echo(_describe(rows, setting))
    typer.echo("\n" + _policy_table(found))
    for refusal in found.refusals:
        typer.echo(f"not replayed: {refusal}")
    typer.echo("\n" + _curve_table(needs, len(stream), setting))
    if as_json is not None:
        write_text(local_path(as_json, where="--json"), to_json(_values(found, needs, stream, setting), indent=2))
        typer.echo(f"wrote {as_json}", err=True)
    if plot is not None:
        fine = cache_needs(stream, trainers, window, NUM_PLOTTED, geometric=False)
        write_text(local_path(plot, where="--plot"), _page(fine, f"Placement: {path}"))
        typer.echo(f"wrote {plot}", err=True)


def _job_of(path: str, embedding_dim: int | None) -> JobConfig:
    """The job of a file, or one for logs: every column of their schema is a feature, and every id has a row."""
    from headrace.errors import ConfigError
    from headrace.logs import schema_beside
    from headrace.logs.inspection import inspect_log
    from headrace.training import JobConfig

    if path.endswith((".yaml", ".yml")):
        if embedding_dim is not None:
            raise ConfigError(
                "--embedding-dim: is for logs without a job, expected model.embedding_dim in the job file"
            )
        return JobConfig.from_file(Path(path))
    beside = schema_beside(path)
    schema: Any = beside if beside is not None and beside.is_file() else inspect_log(path).schema
    if schema is None:
        raise ConfigError(f"{path}: no column looks like a label (0 and 1); write a job with: headrace init {path}")
    values = {
        "run": "placement",
        "data": {"path": path, "schema": str(schema) if isinstance(schema, Path) else schema},
        "embeddings": {"default": {"kind": "collisionless"}},
        "model": {"kind": "dcnv2", "embedding_dim": 16 if embedding_dim is None else embedding_dim},
    }
    return JobConfig.from_dict(values, where=path).resolve(Path.cwd())


def _read(job: JobConfig, batch_size: int, num_batches: int) -> LogRows:
    from functools import partial

    from headrace.training.log_rows import read_log_rows

    say = partial(typer.echo, err=True)
    return read_log_rows(job, batch_size=batch_size, num_batches=num_batches, on_message=say)


def _size_of(size: str) -> tuple[int, bool]:
    """A cache size, and whether it is in rows: a whole number is, all else is a size in bytes."""
    from headrace.errors import ConfigError
    from headrace.resources import parse_bytes

    number = int(size) if size.isdecimal() else parse_bytes(size, where="--cache")
    if number < 1:
        raise ConfigError(f"--cache: given {size}, expected at least one row")
    return number, size.isdecimal()


def _describe(rows: LogRows, setting: Setting) -> str:
    from headrace.messages import count_of

    stream = rows.stream
    mean = sum(len(batch.rows) for batch in stream.batches) / len(stream)
    left = f"; {rows.num_left:,} samples after the last whole step left out" if rows.num_left else ""
    return (
        f"{count_of(len(stream), 'step')} of {stream.num_samples:,} samples at "
        f"{count_of(setting.num_trainers, 'trainer')}, {mean:,.0f} distinct rows a step, "
        f"{stream.num_used:,} in all{left}\n"
        f"a row has {rows.row_bytes.row} bytes and {rows.row_bytes.state} of optimizer state"
    )


def _policy_table(found: Comparison) -> str:
    from headrace.cli.tables import text_table
    from headrace.placement.replay import Kind
    from headrace.resources import format_bytes

    header = ["policy", "cache", "bytes/step", "rows/step", "fetched", "handed over", "gradients", "written back"]
    header += ["critical", "x minimum", "busiest link", "rows held", "at the end", "stale"]
    lines = []
    for result in found.results:
        traffic, steps = result.traffic, result.num_steps
        counts = (
            traffic.rows(),
            traffic.rows(Kind.READ, Kind.FETCH),
            traffic.rows(Kind.HAND_OVER),
            traffic.rows(Kind.GRADIENT, Kind.ALL_REDUCE),
            traffic.rows(Kind.WRITE_BACK),
        )
        share = traffic.critical_bytes() / traffic.bytes() if traffic.bytes() else 0.0
        least = f"{traffic.rows() / result.least_transfers:.2f}" if result.least_transfers else "-"
        lines.append(
            [
                result.policy + ("" if result.keeps_batches else " *"),
                "no limit" if result.setting.capacity is None else f"{result.setting.capacity:,}",
                format_bytes(traffic.bytes() / steps),
                *(f"{count / steps:,.0f}" for count in counts),
                f"{share:.0%}",
                least,
                format_bytes(traffic.link_bytes() / steps),
                f"{result.most_resident:,}",
                format_bytes(traffic.final_bytes()),
                f"{result.num_stale / result.num_reads:.1%}" if result.num_stale else "0",
            ]
        )
    note = "" if all(result.keeps_batches for result in found.results) else "\n* trains on other batches than the log's"
    return text_table(header, lines) + note


def _curve_table(needs: CacheNeeds, num_steps: int, setting: Setting) -> str:
    from headrace.cli.tables import text_table
    from headrace.placement.replay import Kind
    from headrace.resources import format_bytes

    curve, row_bytes = needs.curve, setting.row_bytes.of(Kind.FETCH)
    lines = [
        [
            f"{size:,}",
            format_bytes(size * row_bytes),
            f"{lru / num_steps:,.0f}",
            f"{lru / curve.num_reads:.1%}",
            f"{belady / num_steps:,.0f}",
            f"{belady / curve.num_reads:.1%}",
        ]
        for size, lru, belady in zip(curve.sizes.tolist(), curve.lru.tolist(), curve.belady.tolist(), strict=True)
    ]
    table = text_table(
        ["cache, rows", "memory", "LRU misses/step", "of reads", "fewest misses/step", "of reads"], lines
    )
    return (
        f"cache of one trainer:\n{table}\n"
        f"a window of {needs.window} batches uses up to {needs.window_rows:,} rows; a cache of {needs.resident_rows:,} "
        f"rows ({format_bytes(needs.resident_rows * row_bytes)}) keeps each until its next use in the window"
    )


def _values(found: Comparison, needs: CacheNeeds, stream: RowStream, setting: Setting) -> dict[str, Any]:
    from headrace.placement.replay.comparison import result_values

    return {
        "steps": len(stream),
        "samples_per_step": stream.num_samples,
        "trainers": setting.num_trainers,
        "window": setting.window,
        "from_scratch": setting.from_scratch,
        "row_bytes": setting.row_bytes.row,
        "state_bytes": setting.row_bytes.state,
        "distinct_rows": stream.num_used,
        "window_rows": needs.window_rows,
        "window_cache_rows": needs.resident_rows,
        "curve": {
            "cache_rows": needs.curve.sizes.tolist(),
            "lru_misses": needs.curve.lru.tolist(),
            "fewest_misses": needs.curve.belady.tolist(),
            "reads": needs.curve.num_reads,
        },
        "policies": [result_values(result) for result in found.results],
        "not_replayed": found.refusals,
    }


def _page(needs: CacheNeeds, title: str) -> str:
    import numpy as np

    from headrace.observe.pages import plot_page
    from headrace.observe.plots import Level, Mark, Plot, Series

    curve = needs.curve
    ends = float(curve.sizes[0]), float(curve.sizes[-1])
    misses = Plot(
        "Misses",
        "share of the rows of a step that a trainer's cache lacks, by the size of the cache in rows",
        curve.sizes.astype(np.float64),
        "count",
        (
            Series("LRU", curve.lru / curve.num_reads, "blue"),
            Series("fewest (Belady)", curve.belady / curve.num_reads, "green"),
        ),
        (Level("first uses", ((*ends, curve.num_distinct / curve.num_reads),), "grey", dashed=True),),
        marks=(Mark(float(needs.resident_rows), f"kept until the next use in {needs.window} batches", "window"),),
        y_format="ratio",
        from_zero=True,
    )
    return plot_page(title, "What cache a trainer needs", [misses])
