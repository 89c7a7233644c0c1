"""Overhead of the engine: microseconds per element and stage, with stages that do nothing.

The same elements of 16 rows pass through 1 and through 5 stages, each with its own threads. The difference divided by 4
is the cost of passing an element to one more stage. Stages without their own threads are fused into one call ("joined"
below), which costs less. torchdata's nodes and tf.data are measured with the same batches.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from typing import Any

import harness
import numpy as np
import pyarrow as pa

from headrace.pipeline import from_source
from headrace.pipeline.sources import TableSource

METRIC = "one element, one more stage"
ROWS = 16
FEW, MANY = 1, 5
GOAL_US = 60.0


def same(rows: Any) -> Any:
    """A stage that does nothing."""
    return rows


def seconds(iterate: Callable[[], Any]) -> float:
    """Time one pass over all elements."""
    begin = time.perf_counter()
    for _ in iterate():
        pass
    return time.perf_counter() - begin


def headrace(table: pa.Table, stages: int, *, alone: bool, **options: Any) -> Callable[[], Iterator[Any]]:
    """Run stages in headrace; with `alone`, each stage has its own number of workers, so that none are fused."""
    pipe = from_source(TableSource(table, split_rows=ROWS))
    for number in range(stages):
        pipe = pipe.map(same, name=f"stage{number}")
    if alone:
        workers = options.pop("workers")
        options["workers"] = {f"stage{number}": workers for number in range(stages)}

    def run() -> Iterator[Any]:
        with pipe.open(**options) as batches:
            yield from batches

    return run


def torchdata_nodes(table: pa.Table, stages: int, workers: int) -> Callable[[], Iterator[Any]]:
    """Run stages as torchdata's `ParallelMapper` nodes with threads."""
    import torchdata.nodes as tn

    node: Any = tn.IterableWrapper(table.to_batches(max_chunksize=ROWS))
    for _ in range(stages):
        node = tn.ParallelMapper(node, same, num_workers=workers, method="thread")
    loader = tn.Loader(node)
    return lambda: iter(loader)


def tf_data(table: pa.Table, stages: int, workers: int) -> Callable[[], Iterator[Any]]:
    """Run stages as tf.data's `map` with parallel calls; elements are tensors of 16 numbers, stages are graphs."""
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices(np.arange(table.num_rows).reshape(-1, ROWS))
    for _ in range(stages):
        data = data.map(lambda rows: rows + 0, num_parallel_calls=workers)
    return lambda: iter(data)


def main() -> None:
    """Measure all arms in turn, and write the report."""
    options = harness.options("bench_overhead", __doc__)
    elements = 1_000 if options.quick else 4_000
    numbers = np.arange(elements * ROWS)
    table = pa.table({"id": numbers, "__row_id": numbers})
    makers: dict[str, Callable[[int], Callable[[], Iterator[Any]]]] = {
        "headrace, 1 thread a stage": lambda n: headrace(table, n, alone=True, workers=1),
        "headrace, 2 threads a stage": lambda n: headrace(table, n, alone=True, workers=2),
        "headrace, joined, 2 threads": lambda n: headrace(table, n, alone=False, workers=2),
        "headrace, inline": lambda n: headrace(table, n, alone=False, executor="inline"),
    }
    if importlib.util.find_spec("torchdata") is not None:
        makers["torchdata nodes, 1 thread a stage"] = lambda n: torchdata_nodes(table, n, 1)
        makers["torchdata nodes, 2 threads a stage"] = lambda n: torchdata_nodes(table, n, 2)
    if importlib.util.find_spec("tensorflow") is not None:
        makers["tf.data, 2 calls a stage"] = lambda n: tf_data(table, n, 2)

    def cost(make: Callable[[int], Callable[[], Iterator[Any]]]) -> Callable[[], float]:
        few, many = make(FEW), make(MANY)
        # Within noise a difference may be negative, but a sample must not be.
        return lambda: max(1e-9, (seconds(many) - seconds(few)) / (MANY - FEW) / elements)

    report = harness.Report("bench_overhead")
    arms = {name: cost(make) for name, make in makers.items()}
    limit = 12.0 if options.quick else 60.0
    for name, samples in harness.interleave(arms, rounds=15, seconds=limit).items():
        report.add("stages that do nothing", name, METRIC, "us", [sample * 1e6 for sample in samples])
    ours = "headrace, 2 threads a stage"
    report.compare("stages that do nothing", ours, METRIC, lower_is_better=True)
    reached = report.median("stages that do nothing", ours, METRIC)
    goal = {
        "what": "cost per element and stage, with threads",
        "wanted": f"{GOAL_US:.0f} us",
        "reached": f"{reached:.0f} us",
        "met": reached < GOAL_US,
    }
    report.notes = {"goals": [goal]}
    report.finish(options)


if __name__ == "__main__":
    main()
