"""Clustering a log larger than its memory: a process that may not take more still arranges every row."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("duckdb")

LENGTH = 500

# The first, small log loads and compiles all there is; what is taken from then on is what the log asks for. The limit
# leaves room for what allocators keep: with a gigabyte allowed, the same log needs more than it.
SCRIPT = """
import re, resource, sys
from headrace.logs import Schema
from headrace.logs.clustering import ClusterConfig, cluster_log

log, out, layout, memory_mib, limit_mib = sys.argv[1:]
schema = Schema.from_dict(
    dict(labels=["click"], timestamp="time", session_id="session", id_lists=["history"]), where="test"
)
config = ClusterConfig(layout=layout, memory_bytes=int(memory_mib) << 20)
cluster_log(log + "/small.parquet", out + "-small", schema, config)
data_kib = int(re.search(r"VmData:\\s+(\\d+)", open("/proc/self/status").read())[1])
limit = (data_kib << 10) + (int(limit_mib) << 20)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
done = cluster_log(log + "/large.parquet", out, schema, config)
print(done.windows[0].before.describe())
"""


def cluster(log: Path, out: Path, layout: str, *, memory_mib: int, limit_mib: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(log), str(out), layout, str(memory_mib), str(limit_mib)],
        capture_output=True,
        text=True,
        check=False,
        # Other pools reserve a gigabyte at once, which the limit would count.
        env={**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"},
    )


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 MB of lists in memory; one session has 5 % of the rows."""
    folder = tmp_path_factory.mktemp("log")
    random = np.random.default_rng(1)
    for name, num_blocks in (("small", 1), ("large", 6)):
        with pq.ParquetWriter(folder / f"{name}.parquet", _table(random, 10).schema) as writer:
            for _ in range(num_blocks):
                writer.write_table(_table(random, 500 if name == "small" else 10_000), row_group_size=5000)
    return folder


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory")
@pytest.mark.parametrize("layout", ["clustered", "nested"])
def test_a_log_much_larger_than_memory_is_clustered_inside_it(log: Path, tmp_path: Path, layout: str) -> None:
    process = cluster(log, tmp_path / "out", layout, memory_mib=96, limit_mib=256)
    assert process.returncode == 0, process.stderr[-2000:]
    assert process.stdout.startswith("60,000 rows, checksum")


def _table(random: np.random.Generator, num_rows: int) -> pa.Table:
    sessions = np.where(random.random(num_rows) < 0.05, 7, random.integers(0, 8000, num_rows))
    base = np.repeat(sessions * 1000, LENGTH) + np.tile(np.arange(LENGTH), num_rows)
    offsets = np.arange(num_rows + 1, dtype=np.int32) * LENGTH
    return pa.table(
        {
            "session": sessions,
            "time": random.integers(0, 3_600_000, num_rows),
            "click": random.integers(0, 2, num_rows).astype(np.int8),
            "history": pa.ListArray.from_arrays(offsets, pa.array(base)),
        }
    )
