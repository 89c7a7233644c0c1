"""The promise about memory: a pass over 20 times the data peaks within 1.3 times the memory, however it is laid out."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROWS = 80_000
NUM_IDS = 12

PASS = """
import re, sys
from headrace.logs import ParquetSource, Schema, list_files, select_files

def peak_bytes():  # not ru_maxrss: that one starts at the peak of the process which started this one
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

schema = Schema.from_yaml(sys.argv[2])
before = peak_bytes()
source = ParquetSource(select_files(list_files(sys.argv[1])), schema, max_rows_per_batch=8192)
num_rows = sum(batch.rows.num_rows for split in range(len(source)) for batch in source.read(split))
print(num_rows, before, peak_bytes())
"""


def write(path: Path, num_rows: int, rows_per_group: int) -> None:
    """Ids that do not compress, and lists: 130 bytes a row once decoded."""
    path.parent.mkdir(parents=True)
    random = np.random.default_rng(7)
    with pq.ParquetWriter(path, make_rows(random, 1).schema, use_dictionary=False) as writer:
        for start in range(0, num_rows, rows_per_group):
            writer.write_table(make_rows(random, min(rows_per_group, num_rows - start)), row_group_size=rows_per_group)


def make_rows(random: np.random.Generator, num_rows: int) -> pa.Table:
    columns = {f"id{i}": pa.array(random.integers(0, 2**62, num_rows)) for i in range(NUM_IDS)}
    offsets = pa.array(np.arange(0, 3 * num_rows + 1, 3, dtype=np.int32))
    columns["history"] = pa.ListArray.from_arrays(offsets, pa.array(random.integers(0, 2**62, 3 * num_rows)))
    return pa.table({"click": pa.array(np.zeros(num_rows, dtype=np.int8))} | columns)


def read_in_a_process(folder: Path, schema: Path) -> tuple[int, int, int]:
    done = subprocess.run(
        [sys.executable, "-c", PASS, str(folder), str(schema)], capture_output=True, text=True, timeout=120, check=True
    )
    num_rows, before, after = map(int, done.stdout.split())
    return num_rows, before, after


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("rows_per_group", [ROWS // 4, 20 * ROWS], ids=["many row groups", "one huge row group"])
def test_twenty_times_the_data_takes_hardly_more_memory(tmp_path: Path, rows_per_group: int) -> None:
    schema = tmp_path / "schema.yaml"
    ids = ", ".join(f"id{i}" for i in range(NUM_IDS))
    schema.write_text(f"labels: [click]\nids: [{ids}]\nid_lists: [history]\n")
    write(tmp_path / "small" / "a.parquet", ROWS, rows_per_group)
    write(tmp_path / "large" / "a.parquet", 20 * ROWS, rows_per_group)
    small_rows, small_before, small_peak = read_in_a_process(tmp_path / "small", schema)
    large_rows, large_before, large_peak = read_in_a_process(tmp_path / "large", schema)
    assert (small_rows, large_rows) == (ROWS, 20 * ROWS)
    assert large_peak <= 1.3 * small_peak
    # The interpreter's own 100 MB would hide a good deal of growth: what reading adds must not grow either.
    assert large_peak - large_before <= 1.3 * (small_peak - small_before) + (16 << 20)
