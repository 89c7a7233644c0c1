"""User functions for tests of worker processes, including misbehaving ones."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

__all__ = [
    "DiesOnImport",
    "SlowToImport",
    "add_noise",
    "add_process",
    "allocate",
    "draw",
    "fail_on_fifty",
    "hold_gil",
    "keep_even",
    "kill_itself",
    "kill_itself_once",
    "never_return",
    "same",
    "see_parent",
    "see_surroundings",
]


def same(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Changes nothing."""
    return rows


def hold_gil(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Plain Python that holds the GIL."""
    total = 0
    for value in rows.column("value").to_pylist():
        total += int(value) % 7
    return rows


def keep_even(rows: pa.RecordBatch) -> list[bool]:
    """Keeps every other row."""
    return [value % 2 == 0 for value in rows.column("value").to_pylist()]


def add_noise(rows: pa.RecordBatch, rng: np.random.Generator) -> pa.RecordBatch:
    """Adds random numbers of the element's generator."""
    values = rows.column("value").to_numpy() + rng.random(rows.num_rows)
    return rows.set_column(rows.schema.get_field_index("value"), "value", pa.array(values))


def add_process(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Adds a column with the id of the executing process."""
    return rows.append_column("pid", pa.array([os.getpid()] * rows.num_rows))


def _seen(rows: pa.RecordBatch, value: object) -> pa.RecordBatch:
    return rows.append_column("seen", pa.array([value] * rows.num_rows))


def see_parent(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Adds a column "seen" with the parent process id of the executing process."""
    return _seen(rows, os.getppid())


def see_surroundings(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Adds a column "seen" with working folder, a variable, first import path, CPUs, and OpenMP threads."""
    cpus, threads = sorted(os.sched_getaffinity(0)), os.environ.get("OMP_NUM_THREADS")
    return _seen(rows, f"{os.getcwd()} {os.environ.get('HEADRACE_TEST_WORKER')} {sys.path[0]} {cpus} {threads}")


def draw(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Adds a column "seen" with a number of numpy's global generator."""
    return _seen(rows, float(np.random.random()))


def fail_on_fifty(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Raises on the row with value 50."""
    if 50.0 in rows.column("value").to_pylist():
        raise ValueError("fifty is bad")
    return rows


def kill_itself(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Kills its process on the row with value 50, every time."""
    if 50.0 in rows.column("value").to_pylist():
        os.kill(os.getpid(), signal.SIGKILL)
    return rows


def kill_itself_once(rows: pa.RecordBatch, *, flag: str) -> pa.RecordBatch:
    """Kills its process on the row with value 50, unless the file `flag` exists, which it creates."""
    if 50.0 in rows.column("value").to_pylist() and not Path(flag).exists():
        Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return rows


def never_return(rows: pa.RecordBatch, *, flag: str | None = None) -> pa.RecordBatch:
    """Creates the file `flag` and sleeps for an hour."""
    if flag is not None:
        Path(flag).touch()
    time.sleep(3600)
    return rows


class SlowToImport:
    """A function that all workers except the first cannot finish loading until `flag` exists.

    Each worker that loads it creates a file "loading-PID" next to the flag. Once there is a file "wanted", a call does
    not end before a second worker has begun to load it.
    """

    def __init__(self, flag: str) -> None:
        self.flag = flag

    def __call__(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Changes nothing."""
        folder = Path(self.flag).parent
        while (folder / "wanted").exists() and len(list(folder.glob("loading-*"))) < 2:
            time.sleep(0.01)
        return rows

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return _load_slowly, (self.flag,)


def _load_slowly(flag: str) -> SlowToImport:
    folder = Path(flag).parent
    first = not list(folder.glob("loading-*"))
    (folder / f"loading-{os.getpid()}").touch()
    while not first and not Path(flag).exists():
        time.sleep(0.01)
    return SlowToImport(flag)


class DiesOnImport:
    """A function whose worker dies while loading it."""

    def __call__(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Never called."""
        raise AssertionError

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return os._exit, (3,)


def allocate(rows: pa.RecordBatch, *, row_bytes: int) -> pa.RecordBatch:
    """Adds `row_bytes` bytes to each row, using twice as much memory meanwhile."""
    padding = np.ones(rows.num_rows * row_bytes * 2, dtype=np.uint8)[: rows.num_rows * row_bytes].copy()
    array = pa.FixedSizeBinaryArray.from_buffers(pa.binary(row_bytes), rows.num_rows, [None, pa.py_buffer(padding)])
    return rows.append_column("padding", array)
