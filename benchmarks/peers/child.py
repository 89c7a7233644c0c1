"""The process of one arm of the loader benchmarks: `python -m peers.child ARM FOLDER ROWS OP`.

The process reads commands from standard input, one per line, and answers each with a line of JSON:

    time        time a pass: {"seconds", "rows", "cpu_s"}
    digest      make a pass, and compute a fingerprint of every batch: {"digests"}
    memory      report the memory that this process has used: {"peak_rss_bytes", "ledger_peak_bytes"}

A pass is timed from creating the iterator until its last batch is delivered.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from peers.answers import open_answers
from peers.arms import ARMS
from peers.data import Logs
from peers.work import Batch, digest

__all__ = ["main"]


def timed_pass(start: Any) -> dict[str, float]:
    """Time a pass in which the consumer only counts rows."""
    rows = 0
    cpu, begin = time.process_time(), time.perf_counter()
    for batch in start():
        rows += len(batch.labels) if isinstance(batch, Batch) else batch
    return {"seconds": time.perf_counter() - begin, "rows": rows, "cpu_s": time.process_time() - cpu}


def digests(start: Any) -> dict[str, Any]:
    """Make a pass and return the fingerprints of its batches."""
    return {"digests": [digest(batch) for batch in start() if isinstance(batch, Batch)]}


def memory() -> dict[str, int]:
    """Return the peak resident memory of this process and, for headrace, the largest peak of its ledgers."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM"))
    ours = sys.modules.get("peers.ours")
    return {"peak_rss_bytes": peak, "ledger_peak_bytes": max(ours.PEAKS, default=0) if ours else 0}


def main() -> None:
    """Create the loader, and answer commands until the input ends."""
    arm, folder, num_rows, op = sys.argv[1:]
    answer = open_answers()
    start = ARMS[arm].make(Logs(Path(folder), int(num_rows)), op)
    commands = {"time": lambda: timed_pass(start), "digest": lambda: digests(start), "memory": memory}

    answer({"ready": True, "numpy": np.__version__})
    for line in sys.stdin:
        answer(commands[line.strip()]())


if __name__ == "__main__":
    main()
