"""Snapshots: the cost of `state_dict()`, and the time to resume a stopped reader in the middle of an epoch.

Resuming is timed from creating the reader to its first batch, which is verified to be the next one after half of the
epoch. Fast-forwarding instead reads and discards the first half, as a loader without state must. Peers with state are
torchdata's nodes (with row groups as units, as in `bench_ingest.py`), `StatefulDataLoader`, and streamed Hugging Face
datasets.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import harness
import numpy as np
from peers import torch_loaders
from peers.data import Logs, make_logs
from peers.frames import load_dataset
from peers.work import BATCH_SIZE, SCHEMA, Batch, config

from headrace.features import FeaturePlan
from headrace.logs import Schema
from headrace.pipeline import Pipeline, read_parquet

SNAPSHOT = "state_dict()"
SIZE = "size of the state as JSON"
RESUME = "resume at half an epoch"


class Reader:
    """A loader that can be stopped and resumed.

    Args:
        start: Creates an iterator of batches, optionally from a state.
        state: Returns the state of an iterator; None for loaders without state.
        key: Returns a value that identifies a batch.
        skip: Number of batches to read and discard when resuming; 0 for loaders that resume from a state.
    """

    def __init__(
        self,
        start: Callable[[Any], Iterator[Any]],
        state: Callable[[Any], Any] | None,
        key: Callable[[Any], Any],
        *,
        skip: int = 0,
    ) -> None:
        self.start, self.state, self.key, self.skip = start, state, key, skip
        self.saved: Any = None

    def save(self, batches: int) -> tuple[Any, list[float]]:
        """Read batches and save the state; return the key of the next batch, and the seconds of several snapshots."""
        iterator = self.start(None)
        for _ in itertools.islice(iterator, batches):
            pass
        seconds = []
        if self.state is not None:
            for _ in range(20):
                begin = time.perf_counter()
                self.saved = self.state(iterator)
                seconds.append(time.perf_counter() - begin)
        expected = self.key(next(iterator))
        _close(iterator)
        return expected, seconds

    def resume(self, expected: Any) -> float:
        """Resume, check the first batch, and return the seconds from creating the reader until it was delivered."""
        begin = time.perf_counter()
        iterator = self.start(self.saved)
        for _ in range(self.skip):
            next(iterator)
        batch = next(iterator)
        seconds = time.perf_counter() - begin
        if self.key(batch) != expected:
            raise SystemExit("a resumed reader continued at a different batch")
        _close(iterator)
        return seconds


def headrace(pipe: Pipeline, *, skip: int = 0, **options: Any) -> Reader:
    """Return a reader of headrace's pipeline, resumed from its state or fast-forwarded by `skip` batches."""

    def start(state: Any) -> Iterator[Any]:
        return pipe.open(**options, state=None if skip else state)

    return Reader(start, lambda batches: batches.state_dict(), lambda batch: batch.row_ids[:5].tolist(), skip=skip)


def dataloader(logs: Logs, skip: int) -> Reader:
    """Return a reader of a plain DataLoader, which has no state."""
    make = torch_loaders.dataloader(logs, "modulo", workers=0)
    return Reader(lambda _: make(), None, _key, skip=skip)


def stateful_dataloader(logs: Logs) -> Reader:
    """Return a reader of torchdata's `StatefulDataLoader`, which fast-forwards datasets without state."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    logging.getLogger("torchdata").setLevel(logging.ERROR)  # it warns about the behaviour that is measured here
    current: list[Any] = []

    def start(state: Any) -> Iterator[Any]:
        loader: Any = StatefulDataLoader(torch_loaders.Batches(logs, "modulo"), batch_size=None)
        if state is not None:
            loader.load_state_dict(state)
        current[:] = [loader]
        return iter(loader)

    return Reader(start, lambda _: current[0].state_dict(), _key)


def torchdata_nodes(logs: Logs) -> Reader:
    """Return a reader of torchdata's nodes."""
    current: list[Any] = []

    def start(state: Any) -> Iterator[Any]:
        loader = torch_loaders.nodes_loader(logs, "modulo", workers=2)
        if state is not None:
            loader.load_state_dict(state)
        current[:] = [loader]
        return iter(loader)

    return Reader(start, lambda _: current[0].state_dict(), _key)


def huggingface(logs: Logs) -> Reader:
    """Return a reader of a streamed Hugging Face dataset in Arrow format."""
    current: list[Any] = []

    def start(state: Any) -> Iterator[Any]:
        data = load_dataset(logs, streaming=True).with_format("arrow")
        if state is not None:
            data.load_state_dict(state)
        current[:] = [data]
        return iter(data.iter(batch_size=BATCH_SIZE))

    return Reader(start, lambda _: current[0].state_dict(), lambda table: table["id_2"][:5].to_pylist())


def main() -> None:
    """Measure all readers, and write the report."""
    options = harness.options("bench_resume", __doc__, rows=0, folder=None)
    logs = make_logs(options.rows or (262_144 if options.quick else 1_048_576), options.folder)
    half = logs.num_rows // BATCH_SIZE // 2 + 5  # not at the start of a row group
    schema = Schema.from_dict(SCHEMA, where="benchmark")
    plan = FeaturePlan.from_config(config("modulo"), schema)
    plain = read_parquet(str(logs.folder), schema).batch(BATCH_SIZE).transform(plan)
    shuffled = read_parquet(str(logs.folder), schema).shuffle(num_rows=65_536, seed=7).batch(BATCH_SIZE).transform(plan)
    cases: dict[str, dict[str, Reader]] = {
        "in order": {
            "headrace": headrace(plain, workers=2),
            "headrace, fast-forwarded": headrace(plain, skip=half, workers=2),
            "DataLoader, fast-forwarded": dataloader(logs, half),
        },
        "shuffled in blocks of 65,536": {
            "headrace": headrace(shuffled, workers=2),
            "headrace, fast-forwarded": headrace(shuffled, skip=half, workers=2),
        },
    }
    if importlib.util.find_spec("torchdata") is not None:
        cases["in order"]["torchdata nodes"] = torchdata_nodes(logs)
        cases["in order"]["StatefulDataLoader"] = stateful_dataloader(logs)
    if importlib.util.find_spec("datasets") is not None:
        cases["in order"]["datasets, streamed"] = huggingface(logs)
    report = harness.Report("bench_resume")
    report.notes = {"rows": logs.num_rows, "resumed_at_batch": half}
    for case, readers in cases.items():
        measure(report, case, readers, half, 12.0 if options.quick else 40.0)
    report.finish(options)


def measure(report: harness.Report, case: str, readers: dict[str, Reader], half: int, seconds: float) -> None:
    """Save the state of each reader once, then resume all in turn."""
    arms: dict[str, Callable[[], float]] = {}
    for name, reader in readers.items():
        expected, snapshots = reader.save(half)
        if snapshots and not reader.skip:
            report.add(case, name, SNAPSHOT, "us", [each * 1e6 for each in snapshots])
            report.add(case, name, SIZE, "bytes", [len(json.dumps(reader.saved, default=str))])
        arms[name] = lambda reader=reader, expected=expected: reader.resume(expected)
    for name, samples in harness.interleave(arms, rounds=15, seconds=seconds).items():
        report.add(case, name, RESUME, "ms", [sample * 1e3 for sample in samples])
    report.compare(case, "headrace", RESUME, lower_is_better=True)


def _key(batch: Batch) -> list[int]:
    ids = np.asarray(batch[1])
    return [int(number) for number in ids[2, :5]]


def _close(iterator: Any) -> None:
    close = getattr(iterator, "close", None)
    if close is not None:
        close()


if __name__ == "__main__":
    main()
