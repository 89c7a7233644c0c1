"""Inside a cgroup with a memory limit, a pipeline whose functions allocate is not killed and keeps its budget."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cgroups import memory_cgroup

LIMIT_BYTES = {"thread": 400 << 20, "process": 500 << 20}

PROGRAM = """
import json, os, sys
from functools import partial
with open(sys.argv[1] + "/cgroup.procs", "w") as procs:
    procs.write(str(os.getpid()))
from headrace.pipeline import from_source
from headrace.resources import effective_memory
from headrace.testing.functions import allocate
from headrace.testing.pipelines import SyntheticSource

source = SyntheticSource([[(1000, 0, 0), (3000, 0, 0), (2000, 0, 0)]] * 40)
pipe = from_source(source).map(partial(allocate, row_bytes=2000)).shuffle(num_rows=20_000).batch(2000).prefetch(100)
rows = 0
with pipe.open(workers=8, executor=sys.argv[2]) as batches:
    for batch in batches:
        rows += batch.num_rows
    counters = batches.counters()
print(json.dumps({"rows": rows, "peak": counters.peak_bytes, "budget": counters.budget_bytes,
                  "limit": effective_memory().limit_bytes}))
"""


@pytest.fixture
def cgroup(executor: str) -> Iterator[Path]:
    with memory_cgroup(LIMIT_BYTES[executor]) as folder:
        yield folder


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_a_pipeline_in_a_small_cgroup_is_not_killed_and_stays_within_its_budget(cgroup: Path, executor: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(cgroup), executor],
        capture_output=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr.decode()[-2000:]}"
    result = json.loads(done.stdout)
    assert result["limit"] == LIMIT_BYTES[executor]
    assert result["rows"] == 40 * 6000
    assert result["budget"] == LIMIT_BYTES[executor] // 4
    assert result["budget"] / 4 < result["peak"] <= result["budget"]


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_a_limit_in_which_not_even_one_element_fits_is_refused_at_once(executor: str) -> None:
    program = (
        "import sys\n"
        "from headrace.pipeline import from_source\n"
        "from headrace.testing.functions import same\n"
        "from headrace.testing.pipelines import SyntheticSource\n"
        "from_source(SyntheticSource([[(10, 0, 0)]])).map(same).open(workers=1, executor=sys.argv[1])\n"
    )
    environment = {**os.environ, "HEADRACE_MEMORY": "20MiB"}
    done = subprocess.run(
        [sys.executable, "-c", program, executor], capture_output=True, text=True, check=False, env=environment
    )
    last = done.stderr.splitlines()[-1]
    assert last.startswith("headrace.errors.ConfigError: memory: the limit is 20 MiB (user: HEADRACE_MEMORY)")
    assert ("for worker processes" in last) == (executor == "process")
