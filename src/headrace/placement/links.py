"""Measures how fast rows come from the shards, which decides whether keeping them in a trainer pays."""

from __future__ import annotations

from time import perf_counter

import numpy as np

from headrace.embeddings.keys import Keys
from headrace.embeddings.shards.table_group import TableGroupSpec
from headrace.embeddings.stores.remote import RemoteStore

__all__ = ["is_worth_keeping", "seconds_per_row"]

KEEPING_S = 0.5e-6
"""Time to read a row from which on keeping it pays: about the processor time that the planner and the kernels need for
it in each step. Measured on the public Criteo sample at dimension 16: keeping rows was slower than the best scheduler
between two processes of one machine, where reading a row took 0.4 us, and faster at 1 Gb/s, where it took 0.64 us."""

EXCHANGING_S = 1.0e-6
"""The same for the planning of another trainer's rows, and for waiting for it. Measured with two trainers on the same
sample: keeping rows was slower at 1 Gb/s, where reading a row took 0.69 us, and faster at 0.3 Gb/s, where it took
1.86."""

READ_ROWS, READ_BYTES, NUM_READS = 8192, 1 << 20, 4
"""Rows of a measured read, so many that its fixed costs hardly count, but at most so many bytes; and the number of
reads, of which the fastest counts."""


def is_worth_keeping(row_s: float, *, num_trainers: int) -> bool:
    """Whether rows that take so long to read, in seconds per row, are better kept in the trainers."""
    return row_s > KEEPING_S + EXCHANGING_S * (num_trainers - 1)


def seconds_per_row(store: RemoteStore) -> float:
    """Seconds per row of a large read, including the work of shard and trainer; changes nothing in the shards."""
    keys = _some_keys(store.spec)
    fastest = float("inf")
    for _ in range(NUM_READS):
        start = perf_counter()
        store.read(keys, after=0).result()
        fastest = min(fastest, perf_counter() - start)
    return fastest / len(keys)


def _some_keys(spec: TableGroupSpec) -> Keys:
    """The first ids of all tables, in equal parts, without counts, so that nothing is recorded of them."""
    num_rows = max(1, min(READ_ROWS, READ_BYTES // (4 * spec.embedding_dim)) // len(spec.sizes))
    ids = [np.arange(min(num_rows, size or num_rows), dtype=np.int64) for size in spec.sizes.tolist()]
    tables = np.repeat(np.arange(len(ids), dtype=np.int32), [len(part) for part in ids])
    return Keys(tables, np.concatenate(ids), np.zeros(len(tables), dtype=np.int32))
