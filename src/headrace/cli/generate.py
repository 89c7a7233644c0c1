"""`headrace generate`: writes a synthetic log with a known best score."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Option = typer.Option


def generate(
    out: Annotated[Path, typer.Argument(help="Output folder; must be new or empty.")],
    config: Annotated[
        Path | None,
        Option("--config", help="YAML file with values of GenerateConfig. Overrides --preset; options override it."),
    ] = None,
    preset: Annotated[str | None, Option(help="Start from published log statistics: rm1, mixed or control.")] = None,
    rows: Annotated[int | None, Option(help="Total rows [300000].")] = None,
    windows: Annotated[int | None, Option(help="Windows, one folder each [3].")] = None,
    seed: Annotated[int | None, Option(help="Random seed; determines every value [7].")] = None,
    window_seconds: Annotated[int | None, Option(help="Seconds per window [3600].")] = None,
    rows_per_session: Annotated[float | None, Option(help="Mean rows per session [8].")] = None,
    change_ratio: Annotated[
        float | None, Option(help="Probability that a user-side column changes between two rows of a session [0.05].")
    ] = None,
    users: Annotated[int | None, Option(help="Active users at any time [20000].")] = None,
    items: Annotated[int | None, Option(help="Active items at any time [5000].")] = None,
    zipf: Annotated[float | None, Option(help="Zipf exponent of item popularity; 0 is uniform [1.05].")] = None,
    id_lists: Annotated[int | None, Option(help="Id lists per row [2].")] = None,
    list_mean_length: Annotated[float | None, Option(help="Mean list length [12].")] = None,
    list_max_length: Annotated[int | None, Option(help="Maximum list length [50].")] = None,
    new_ids_ratio: Annotated[float | None, Option(help="Fraction of ids replaced in each window [0.02].")] = None,
    drift_ratio: Annotated[
        float | None, Option(help="Fraction of the teacher's hidden effects redrawn in each window [0.02].")
    ] = None,
    label_rate: Annotated[float | None, Option(help="Fraction of rows with a click [0.25].")] = None,
    signal: Annotated[
        float | None, Option(help="Standard deviation of the teacher's logit: how much there is to learn [1.15].")
    ] = None,
) -> None:
    """Write a synthetic log with sessions, and print the best normalised entropy that any model can reach on it.

    Example: headrace generate logs --rows 300000 --windows 3
    """
    # All other parameters are fields of the config.
    given: dict[str, Any] = {name: value for name, value in locals().items() if value is not None}
    for name in ("out", "config", "preset"):
        given.pop(name, None)

    from headrace.config import read_yaml
    from headrace.errors import ConfigError
    from headrace.logs.generate import PRESETS, GenerateConfig, generate_logs
    from headrace.messages import count_of
    from headrace.observe.progress import Progress

    values = read_yaml(config) if config is not None else {}
    if not isinstance(values, dict):
        raise ConfigError(f"{config}: given {type(values).__name__}, expected a mapping of keys to values")
    if preset is not None and preset not in PRESETS:
        raise ConfigError(f"--preset: given {preset!r}, expected one of: {', '.join(PRESETS)}")
    base = PRESETS[preset] if preset is not None else {}
    chosen = GenerateConfig.from_dict({**base, **values, **given}, where=str(config) if config else "generate")

    with Progress("generate", total=chosen.rows) as progress:
        log = generate_logs(chosen, out, on_rows=progress.advance)
    for bound in log.bounds:
        typer.echo(
            f"window {bound.window:03d}: {bound.rows:,} rows, label rate {bound.label_rate:.3f}; best reachable: "
            f"normalised entropy {bound.best_normalized_entropy:.4f}, log loss {bound.best_log_loss:.4f}, "
            f"AUC {bound.best_auc:.4f}"
        )
    typer.echo(f"{log.num_rows:,} rows in {count_of(len(log.bounds), 'window')}: {log.folder}")
