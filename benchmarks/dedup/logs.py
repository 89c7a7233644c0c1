"""Logs of `bench_dedup.py`: with the published statistics, in all three layouts; kept between runs."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from headrace.logs import Schema
from headrace.logs.clustering import ClusterConfig, cluster_log
from headrace.logs.generate import GenerateConfig, generate_logs
from headrace.logs.generate.presets import PRESETS
from headrace.logs.importers import import_clicks

__all__ = ["LAYOUTS", "DedupLogs", "generate", "generated", "news", "rows_of_a_session"]

LAYOUTS = ("time", "clustered", "nested")
NEWS_HOURS = range(200, 208)
VERSION = 2


@dataclass(frozen=True)
class DedupLogs:
    """The same rows in three layouts.

    Attributes:
        folder: Folder with one subfolder per layout.
        num_rows: Number of rows, the same in all layouts.
    """

    folder: Path
    num_rows: int

    def path(self, layout: str) -> Path:
        """Return the folder of a layout."""
        return self.folder / layout

    def schema(self, layout: str) -> Schema:
        """Return the schema of a layout."""
        return Schema.from_yaml(self.path(layout) / "schema.yaml")

    def num_bytes(self, layout: str) -> int:
        """Return the total size of the Parquet files of a layout."""
        return sum(path.stat().st_size for path in self.path(layout).rglob("*.parquet"))


def generate(sizes: Sequence[tuple[str, int]]) -> None:
    """Generate the logs of these (preset, number of rows) that do not exist yet, two at a time."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        for made in [pool.submit(generated, preset, num_rows) for preset, num_rows in sizes]:
            made.result()


def rows_of_a_session(logs: DedupLogs, batch_rows: int) -> float:
    """Return the mean rows per session within a batch in time order, over all complete batches."""
    schema = logs.schema("time")
    files = sorted((logs.folder / "time").rglob("*.parquet"))
    sessions = np.concatenate([pq.read_table(file, columns=[schema.session_id]).column(0).to_numpy() for file in files])
    size = min(batch_rows, len(sessions))
    firsts = range(0, len(sessions) - size + 1, size)
    return float(np.mean([size / len(np.unique(sessions[at : at + size])) for at in firsts]))


def generated(preset: str, num_rows: int) -> DedupLogs:
    """Return the log of a preset of `headrace generate`, which is generated unless it exists."""
    target = Path(tempfile.gettempdir()) / f"headrace-bench-dedup-v{VERSION}-{preset}-{num_rows}"
    if not target.exists():
        part = target.with_name(f"{target.name}.{os.getpid()}")
        shutil.rmtree(part, ignore_errors=True)
        generate_logs(GenerateConfig.from_dict({**PRESETS[preset], "rows": num_rows}, where=preset), part / "time")
        _cluster(part)
        part.rename(target)
    return DedupLogs(target, num_rows)


def news(data: Path) -> DedupLogs:
    """Return some hours of the real news log, imported as in the recipe."""
    target = Path(tempfile.gettempdir()) / f"headrace-bench-dedup-v{VERSION}-news"
    if not target.exists():
        part = target.with_name(f"{target.name}.{os.getpid()}")
        shutil.rmtree(part, ignore_errors=True)
        import_clicks(data / "globo" / "clicks_hourly.tar.gz", part / "all")
        (part / "time").mkdir()
        for name in ("schema.yaml", *(f"hour={hour:03}" for hour in NEWS_HOURS)):
            (part / "all" / name).rename(part / "time" / name)
        shutil.rmtree(part / "all")
        _cluster(part)
        part.rename(target)
    files = (target / "time").rglob("*.parquet")
    return DedupLogs(target, sum(pq.read_metadata(file).num_rows for file in files))


def _cluster(folder: Path) -> None:
    schema = Schema.from_yaml(folder / "time" / "schema.yaml")
    for layout in LAYOUTS[1:]:
        config = ClusterConfig.from_dict({"layout": layout}, where="bench")
        cluster_log(folder / "time", folder / layout, schema, config)
