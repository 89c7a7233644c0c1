"""Logs of two windows for `bench_placement.py`: the same number of rows in two files, kept between runs."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from quality.logs import MissingLog, make_log

from headrace.logs.files import list_files

__all__ = ["LOGS", "MissingLog", "window_log"]

VERSION = 1
NUM_IDS, NUM_FEATURES, NUM_DENSE = 1_000_000, 16, 8
DRIFT = 0.1
"""Share of its ids that a feature replaces from one window to the next."""

LOGS = ("criteo", "news", "zipf-0.9", "zipf-1.05", "zipf-1.2")


def window_log(name: str, num_rows: int) -> Path:
    """Write a log of two windows unless it is kept from an earlier run; returns its folder.

    Args:
        name: One of `LOGS`: the first rows of a real log, or ids drawn from a Zipf distribution that drifts.
        num_rows: Maximum number of rows of both windows.

    Raises:
        MissingLog: `HEADRACE_DATA` does not have it.
    """
    target = Path(tempfile.gettempdir()) / f"headrace-bench-placement-v{VERSION}-{name}-{num_rows}"
    if target.exists():
        return target
    part = target.with_name(f"{target.name}.{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    if name.startswith("zipf-"):
        rows = _zipf_rows(float(name.removeprefix("zipf-")), num_rows)
        schema = "labels: [label]\n" + f"dense: {[f'd{n}' for n in range(NUM_DENSE)]}\n"
        (part / "schema.yaml").write_text(schema + f"ids: {[f'c{n}' for n in range(NUM_FEATURES)]}\n")
    else:
        log = make_log(name)
        rows = pa.concat_tables([pq.read_table(file.path) for file in list_files(log.path)]).slice(0, num_rows)
        shutil.copy(log.path / "schema.yaml", part)
    half = len(rows) // 2
    for number in range(2):
        pq.write_table(rows.slice(number * half, half), part / f"part-{number}.parquet")
    part.rename(target)
    return target


def _zipf_rows(exponent: float, num_rows: int) -> pa.Table:
    rng = np.random.default_rng(11)
    columns = {f"d{n}": pa.array(rng.normal(size=num_rows).astype(np.float32)) for n in range(NUM_DENSE)}
    power = 1 - exponent
    for n in range(NUM_FEATURES):
        ranks = (1 + rng.random(num_rows) * ((NUM_IDS + 1.0) ** power - 1)) ** (1 / power)
        ids = np.minimum(ranks.astype(np.int64), NUM_IDS) - 1
        is_second = np.arange(num_rows) >= num_rows // 2
        moves = (ids * 2_654_435_761 + n) % 1000 < 1000 * DRIFT
        columns[f"c{n}"] = pa.array(np.where(is_second & moves, ids + NUM_IDS, ids))
    label = (rng.random(num_rows) < 0.2).astype(np.float32)
    return pa.table({"label": pa.array(label), **columns})
