"""The rows that the steps of `bench_storage.py` use: ids drawn from Zipf distributions that drift, and a real log."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Trace", "news_trace", "zipf_trace"]

DRIFT = 0.1
"""Share of the ranks that get another row from one window to the next."""

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Trace:
    """The rows of each step.

    Attributes:
        num_rows: Rows of the table.
        steps: Unique rows of each step, int64, ascending.
    """

    num_rows: int
    steps: list[Int64s]


def zipf_trace(exponent: float, num_rows: int, *, num_steps: int, num_ids: int, num_windows: int) -> Trace:
    """Ids from a Zipf distribution, `num_ids` per step; between windows, a tenth of the ranks changes rows."""
    rng = np.random.default_rng(int(100 * exponent))
    ends = np.cumsum(np.arange(1, num_rows + 1, dtype=np.float64) ** -exponent)
    row_of = rng.permutation(num_rows)
    steps = []
    for step in range(num_steps):
        if step and step % -(-num_steps // num_windows) == 0:
            moved = np.flatnonzero(rng.random(num_rows) < DRIFT)
            row_of[moved] = row_of[rng.permutation(moved)]
        ranks = np.searchsorted(ends, rng.random(num_ids) * ends[-1])
        steps.append(np.unique(row_of[np.minimum(ranks, num_rows - 1)]))
    return Trace(num_rows, steps)


def news_trace(num_log_rows: int, batch_size: int) -> Trace:
    """The rows of a job on the news log: users, articles and context.

    Raises:
        MissingLog: `HEADRACE_DATA` does not have it.
    """
    from placement.logs import window_log

    from headrace.training import JobConfig
    from headrace.training.log_rows import read_log_rows

    folder = window_log("news", num_log_rows)
    job = {
        "run": str(folder.parent / "unused"),
        "data": {"path": str(folder)},
        "embeddings": {"default": {"kind": "collisionless"}},
    }
    stream = read_log_rows(JobConfig.from_dict(job, where="news").resolve(folder), batch_size=batch_size).stream
    return Trace(stream.num_rows, [np.sort(batch.rows).astype(np.int64) for batch in stream.batches])
