"""The logs on which quality is measured: real ones from the folder `HEADRACE_DATA`, and generated ones; kept between
runs."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.logs.files import list_files
from headrace.logs.importers import ClicksConfig, ClicksImport, import_clicks, import_criteo
from headrace.logs.importers.click_files import total_bytes
from headrace.observe.progress import Progress
from quality.generated import GENERATED, generate_rows

__all__ = ["LOGS", "MissingLog", "QualityLog", "make_log"]

VERSION = 1
CRITEO, CRITEO_ROWS = "criteo/criteo_kaggle_137139.tsv.gz", 137_139
NEWS, NEWS_ROWS, MOST_NEWS_ROWS = "globo/clicks_hourly.tar.gz", 200_000, 14_900_000
GENERATED_ROWS = 50_000
RARE_RATE = 0.026

LOGS = {
    "criteo": CRITEO_ROWS,
    "criteo-20k": 20_000,
    "criteo-10k": 10_000,
    "rare": CRITEO_ROWS,
    "rare-20k": 20_000,
    "rare-10k": 10_000,
    "news": NEWS_ROWS,
    **dict.fromkeys(GENERATED, GENERATED_ROWS),
}
"""Number of rows of each log; at most so many, but `MOST_NEWS_ROWS` of the news log."""


class MissingLog(Exception):
    """A real log is not in the folder `HEADRACE_DATA`."""


@dataclass(frozen=True)
class QualityLog:
    """A log to train on.

    Attributes:
        name: Name in `LOGS`.
        folder: Holds the folder `logs`, and for generated logs the true probabilities.
    """

    name: str
    folder: Path

    @property
    def path(self) -> Path:
        """The log, as given to `headrace init`."""
        return self.folder / "logs"

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return sum(pq.read_metadata(file.path).num_rows for file in list_files(self.path))

    @property
    def truth(self) -> npt.NDArray[np.float64] | None:
        """True probabilities [N] of a generated log; None for real logs."""
        file = self.folder / "truth.npy"
        return np.load(file) if file.exists() else None


def make_log(name: str, max_rows: int = 0) -> QualityLog:
    """Write a log unless it is kept from an earlier run.

    Args:
        name: Name in `LOGS`.
        max_rows: Maximum number of rows, the first ones; 0 for those of `LOGS`.

    Raises:
        MissingLog: `HEADRACE_DATA` does not have it.
    """
    num_rows = min(MOST_NEWS_ROWS if name == "news" else LOGS[name], max_rows or LOGS[name])
    target = _kept(f"{name}-{num_rows}")
    if target.exists():
        return QualityLog(name, target)
    part = target.with_name(f"{target.name}.{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    log = QualityLog(name, part)
    log.path.mkdir(parents=True)
    if name in GENERATED:
        rows, truth = generate_rows(name, num_rows)
        pq.write_table(rows, log.path / "part-0.parquet")
        np.save(part / "truth.npy", truth)
    elif name == "news":
        _write_news(log.path, num_rows)
    else:
        _write_criteo(log.path, num_rows, rare=name.startswith("rare"))
    part.rename(target)
    return QualityLog(name, target)


def _kept(name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"headrace-bench-quality-v{VERSION}-{name}"


def _real(name: str) -> Path:
    path = Path(os.environ.get("HEADRACE_DATA", "-")) / name
    if not path.is_file():
        raise MissingLog(f"{name}: not found in HEADRACE_DATA")
    return path


def _write_criteo(folder: Path, num_rows: int, *, rare: bool) -> None:
    """The first rows of Criteo's sample, or of what is left of it if most positives are left out."""
    source, imported = _real(CRITEO), _kept("criteo-import")
    if not imported.exists():
        import_criteo(source, imported)
    (file,) = list_files(imported)
    rows = pq.ParquetFile(file.path).read()
    if rare:
        clicked = rows["label"].to_numpy() == 1
        kept = RARE_RATE / (1 - RARE_RATE) * np.sum(~clicked) / np.sum(clicked)
        rows = rows.filter(pa.array(~clicked | (np.random.default_rng(7).random(len(rows)) < kept)))
    pq.write_table(rows.slice(0, num_rows), folder / "part-0.parquet")
    shutil.copy(imported / "schema.yaml", folder)


def _write_news(folder: Path, num_rows: int) -> None:
    """The first hours of the news log, one folder for each."""

    class Enough(Exception):
        pass

    source, imported = _real(NEWS), _kept("news-import")
    with Progress("import of the news log", total=total_bytes(source), unit="bytes") as progress, suppress(Enough):

        def on_hour(num_bytes: int, done: ClicksImport) -> None:
            progress.update(num_bytes)
            if done.rows >= num_rows:
                raise Enough

        import_clicks(source, imported, on_hour=on_hour)  # continues where an earlier run stopped
    for file in list_files(imported):
        rows = pq.ParquetFile(file.path).read().slice(0, num_rows)
        if len(rows) > 0:
            (folder / file.folder).mkdir(exist_ok=True)
            pq.write_table(rows, folder / file.name)
        num_rows -= len(rows)
    (folder / "schema.yaml").write_text(ClicksConfig().log_schema().to_yaml(), encoding="utf-8")
