"""Assigns tables to threads by cost; the keys of a large table may be split between threads.

A split changes which thread sums a key, but not the order of the sum, so results do not depend on the number of
threads.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel

__all__ = ["Tasks", "deal_tasks"]

Int64s = npt.NDArray[np.int64]

SLACK = 0.1  # a table is split if it exceeds a thread's work by this share, because each part reads all its ids


class Tasks(NamedTuple):
    """Task t processes the keys `part[t]`, `part[t] + num_parts[t]`, ... of table `table[t]`.

    Attributes:
        starts: int64 [threads + 1]; thread i has the tasks from `starts[i]` to `starts[i + 1]`.
        table: int64 [tasks].
        part: int64 [tasks].
        num_parts: int64 [tasks].
    """

    starts: Int64s
    table: Int64s
    part: Int64s
    num_parts: Int64s


@kernel()
def _deal(costs: Int64s, num_threads: int, split: bool) -> tuple[Int64s, Int64s, Int64s, Int64s]:
    share = costs.sum() / num_threads
    parts = np.ones(len(costs), dtype=np.int64)
    if split and share > 0:
        for n in range(len(costs)):
            parts[n] = max(1, min(num_threads, int(np.ceil(costs[n] / share - SLACK))))
    num_tasks = parts.sum()
    table, part = np.empty(num_tasks, dtype=np.int64), np.empty(num_tasks, dtype=np.int64)
    task_costs, t = np.empty(num_tasks, dtype=np.float64), 0
    for n in range(len(costs)):
        for p in range(parts[n]):
            table[t], part[t], task_costs[t] = n, p, costs[n] / parts[n]
            t += 1
    # Longest processing time first: each table goes to the thread with the least work so far.
    thread, work = np.empty(num_tasks, dtype=np.int64), np.zeros(num_threads, dtype=np.float64)
    for t in np.argsort(-task_costs, kind="mergesort"):
        thread[t] = np.argmin(work)
        work[thread[t]] += task_costs[t]
    order = np.argsort(thread, kind="mergesort")
    starts = np.searchsorted(thread[order], np.arange(num_threads + 1))
    return starts, table[order], part[order], parts[table[order]]


def deal_tasks(costs: Int64s, *, split: bool) -> Tasks:
    """Assign tables to Numba threads.

    Args:
        costs: int64 [T], cost of each table in any unit.
        split: Whether the keys of one table may be split between threads.
    """
    return Tasks(*_deal(costs, numba.get_num_threads(), split))
