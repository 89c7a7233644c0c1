"""Writes a synthetic log: one folder per window, the schema, and the best reachable scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.errors import ConfigError
from headrace.files import write_text, writing
from headrace.logs.generate.rows import GeneratedRows, Generator
from headrace.logs.generate.spec import GenerateConfig
from headrace.logs.generate.teacher import BoundMeter, WindowBound
from headrace.logs.writer import ParquetLogWriter
from headrace.paths import local_path

__all__ = ["GeneratedLog", "generate_logs", "generate_window"]

TEACHER_NAME = "teacher.json"
SCHEMA_NAME = "schema.yaml"


@dataclass(frozen=True)
class GeneratedLog:
    """The result of `generate_logs`.

    Attributes:
        folder: Folder with `window=000/`, ..., `schema.yaml` and `teacher.json`.
        bounds: Best reachable scores, per window.
    """

    folder: Path
    bounds: tuple[WindowBound, ...]

    @property
    def num_rows(self) -> int:
        """Total rows of all windows."""
        return sum(bound.rows for bound in self.bounds)


def generate_logs(
    config: GenerateConfig,
    folder: str | Path,
    *,
    on_rows: Callable[[int], None] | None = None,
) -> GeneratedLog:
    """Write a synthetic log. Each window's folder is published atomically, and `teacher.json` is written last.

    Args:
        config: Configuration of the log.
        folder: Output folder; must be new or empty.
        on_rows: Called with the number of rows just written.

    Raises:
        ConfigError: The folder is not empty.
    """
    folder = local_path(folder, where="OUT")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: is not empty; choose a new or empty folder")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / SCHEMA_NAME, config.log_schema().to_yaml())
    generator = Generator(config)
    bounds = []
    for window in range(config.windows):
        meter = BoundMeter(window)
        partition = [("window", f"{window:03d}")]
        with ParquetLogWriter(folder, schema=generator.arrow_schema, partition=partition) as writer:
            for rows in generator.window(window):
                writer.write(rows.batch)
                meter.add(rows.probability, rows.batch.column("click").to_numpy())
                if on_rows is not None:
                    on_rows(rows.batch.num_rows)
        bounds.append(meter.result())
    text = json.dumps(_teacher_values(config, generator, bounds), indent=1)
    write_text(folder / TEACHER_NAME, text + "\n")
    return GeneratedLog(folder, tuple(bounds))


def generate_window(config: GenerateConfig, window: int) -> Iterator[GeneratedRows]:
    """Generate the rows of one window with their true probabilities, without writing."""
    yield from Generator(config).window(window)


def _teacher_values(config: GenerateConfig, generator: Generator, bounds: list[WindowBound]) -> dict[str, Any]:
    return {
        "version": 1,
        "config": config.model_dump(mode="json"),
        "scale": generator.calibration.scale,
        "intercept": generator.calibration.intercept,
        "windows": [bound.to_dict() for bound in bounds],
    }
