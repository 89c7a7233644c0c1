"""One loader of `bench_tuning.py --real` in a separate process: `python tuning_loaders.py ARM FOLDER SECONDS`.

The process trains on the first batches, prints "ready", waits for a line of input, and then trains for this many
seconds. At the end it prints JSON: the batches of each half second, a checksum of the first batches, and the CPU use of
headrace's tuner.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import psutil
import tuning_work as work

NUM_ELEMENTS = 1_000_000
TICK_S = 0.5
CHECKED = 8


def headrace(folder: str, stack: ExitStack, *, by_hand: bool = False) -> Iterator[bytes]:
    """Read with headrace: as it comes (`tuner="auto"`), or with all workers set by hand and no tuner."""
    import pyarrow as pa

    from headrace.logs.source import ROW_ID, SourceBatch
    from headrace.pipeline import from_source

    @dataclass(frozen=True)
    class Files:
        def __len__(self) -> int:
            return NUM_ELEMENTS

        def read(self, split: int) -> Iterator[SourceBatch]:
            columns = [pa.array([split], pa.int64()), pa.array([work.read(folder, split)], pa.large_binary())]
            yield SourceBatch(pa.RecordBatch.from_arrays(columns, names=[ROW_ID, "value"]), num_read=1)

        def describe(self, split: int) -> str:
            return f"file {split}"

    pipeline = (
        from_source(Files())
        .map(partial(apply, work.decode), name="decode")
        .map(partial(apply, work.user_function), name="user_function", executor="process")
        .map(partial(apply, work.features), name="features")
    )
    options: Any = {"tuner": "none", "workers": BY_HAND} if by_hand else {"tuner": "auto"}
    batches = stack.enter_context(pipeline.open(**options))
    if by_hand:
        batches.tunables["workers"].set(sum(BY_HAND.values()))
    for rows in batches:
        yield rows["value"][0].as_buffer().to_pybytes()


def apply(function: Any, rows: Any) -> Any:
    """Apply a function of bytes to the value of a single row."""
    import pyarrow as pa

    result = function(rows["value"][0].as_buffer().to_pybytes())
    offsets = pa.py_buffer(np.array([0, len(result)], np.int64))
    value = pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(result)])  # pa.array would copy
    return rows.set_column(rows.schema.get_field_index("value"), "value", value)


def tf_data(folder: str, stack: ExitStack) -> Iterator[bytes]:
    """Read with tf.data and AUTOTUNE everywhere; Python functions run in its process, through `tf.numpy_function`."""
    import tensorflow as tf

    def wrap(function: Any) -> Any:
        return lambda value: tf.numpy_function(function, [value], tf.string)

    auto = tf.data.AUTOTUNE
    dataset = tf.data.Dataset.range(NUM_ELEMENTS)
    for function in (lambda i: work.read(folder, int(i)), work.decode, work.user_function, work.features):
        dataset = dataset.map(wrap(function), num_parallel_calls=auto, deterministic=True)
    for value in dataset.prefetch(auto):
        yield value.numpy()


def data_loader(folder: str, stack: ExitStack, *, workers: int) -> Iterator[bytes]:
    """Read with a DataLoader whose worker processes run all stages."""
    from torch.utils.data import DataLoader

    yield from DataLoader(AllStagesDataset(folder), batch_size=None, num_workers=workers)  # type: ignore[arg-type]


class AllStagesDataset:
    """A map-style dataset that runs all stages of an element at once."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def __len__(self) -> int:
        return NUM_ELEMENTS

    def __getitem__(self, number: int) -> bytes:
        return work.features(work.user_function(work.decode(work.read(self._folder, number))))


BY_HAND = {"source": 4, "decode": 1, "user_function": 2, "features": 1}
"""Workers for two CPUs: four slow reads at a time, and one process per CPU for the function that holds the GIL."""

LOADERS: dict[str, Any] = {
    "headrace, auto": headrace,
    "headrace, set by hand": partial(headrace, by_hand=True),
    "tf.data, AUTOTUNE": tf_data,
    "DataLoader, default (0 workers)": partial(data_loader, workers=0),
    **{f"DataLoader, {n} workers": partial(data_loader, workers=n) for n in (2, 4, 8)},
}
PACKAGES = {"tf.data, AUTOTUNE": "tensorflow"}


def cpu_of_tuner() -> float:
    """Return the CPU seconds of the thread of headrace's tuner, or 0 without a tuner."""
    tuners = {thread.native_id for thread in threading.enumerate() if thread.name == "headrace-tuner"}
    return sum(thread.user_time + thread.system_time for thread in psutil.Process().threads() if thread.id in tuners)


def main() -> None:
    """Train with the loader that the command line names."""
    arm, folder, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    trainer, check = work.Trainer(), 0
    per_tick = np.zeros(round(seconds / TICK_S), np.int64)
    with ExitStack() as stack:
        batches = LOADERS[arm](folder, stack)
        for _ in range(CHECKED):
            batch = next(batches)
            check = zlib.crc32(batch, check)
            trainer.step(batch)
        print("ready", flush=True)
        sys.stdin.readline()
        began = time.monotonic()
        for batch in batches:
            trainer.step(batch)
            tick = int((time.monotonic() - began) / TICK_S)
            if tick >= len(per_tick):
                break
            per_tick[tick] += 1
        tuner_cpu = cpu_of_tuner() / (time.monotonic() - began)
        print(json.dumps({"per_tick": per_tick.tolist(), "check": check, "tuner_cpu": tuner_cpu}), flush=True)
    os._exit(0)  # some loaders take long to end their workers


if __name__ == "__main__":
    main()
