"""In a cgroup whose limit is smaller than the table, training with tiered storage and saving it is not killed."""

import os
import subprocess
import sys
from pathlib import Path

from cgroups import memory_cgroup

LIMIT_BYTES = 400 << 20  # about 250 MiB for the interpreter and its libraries
NUM_ROWS, DIM = 600_000, 256  # 617 MB with optimizer state

PROGRAM = """
import os, sys
with open(sys.argv[1] + "/cgroup.procs", "w") as procs:
    procs.write(str(os.getpid()))
import numpy as np
from headrace.embeddings import Keys, TableConfig, TableGroup
from headrace.embeddings.storage.tiered import TieredStorage

num_rows, dim = int(sys.argv[3]), int(sys.argv[4])
table = TableConfig(name="item", kind="hashed", num_embeddings=num_rows, embedding_dim=dim)
group = TableGroup([table], seed=0, make_storage=TieredStorage.within(sys.argv[2], 32 << 20))
gradients = np.ones((10_000, dim), np.float32)
for first in [*range(0, num_rows, 10_000), 0]:
    keys = Keys(np.zeros(10_000, np.int32), np.arange(first, first + 10_000), np.ones(10_000, np.int32))
    group.read(keys)
    group.update(keys, gradients)
state = group.state_dict()
assert state["weights"].shape == (num_rows, dim)
print(group.storage.counters.num_written_bytes)
"""


def test_a_table_larger_than_the_memory_limit_is_trained_and_saved(tmp_path: Path) -> None:
    with memory_cgroup(LIMIT_BYTES) as cgroup:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(cgroup), str(tmp_path), str(NUM_ROWS), str(DIM)],
            capture_output=True,
            timeout=120,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr.decode()[-2000:]}"
    assert int(done.stdout) > NUM_ROWS * DIM * 4 * 0.9
    assert not list(tmp_path.iterdir())
