"""Loader arms of Ray Data, Hugging Face datasets and polars."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from peers.data import ROW_GROUP_ROWS, Logs
from peers.work import BATCH_SIZE, COLUMNS, DENSE, IDS, LABEL, RANGES, Batch, IdOp, numpy_batch, slices, torch_batch

__all__ = ["huggingface", "huggingface_torch", "load_dataset", "polars_frame", "ray_data"]


def ray_data(logs: Logs, op: IdOp, *, in_tasks: bool) -> Callable[[], Iterator[Batch]]:
    """Read with Ray Data on all CPUs.

    Args:
        logs: Logs to read.
        op: Operation on ids.
        in_tasks: Whether the work is done in Ray's tasks (`map_batches`), which return tensors. Otherwise, it is done
            in the consumer, which receives record batches.
    """
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    import ray
    import torch

    torch.set_num_threads(1)
    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    ray.init(
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": folder}},
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.data.DataContext.get_current().execution_options.preserve_order = True

    def work(rows: pa.Table) -> dict[str, np.ndarray]:
        batch = numpy_batch(rows.combine_chunks().to_batches()[0], op)
        return {
            "dense": np.ascontiguousarray(batch.dense),
            "ids": np.ascontiguousarray(batch.ids.T),
            LABEL: batch.labels,
        }

    def run() -> Iterator[Batch]:
        data = ray.data.read_parquet(logs.files, columns=list(COLUMNS))
        if in_tasks:
            data = data.map_batches(work, batch_size=None, batch_format="pyarrow", zero_copy_batch=True)
            for batch in data.iter_torch_batches(batch_size=BATCH_SIZE, prefetch_batches=4):
                yield Batch(batch["dense"], batch["ids"], batch[LABEL])
        else:
            for rows in data.iter_batches(batch_size=BATCH_SIZE, batch_format="pyarrow", prefetch_batches=4):
                yield torch_batch(rows.combine_chunks().to_batches()[0], op)

    return run


def huggingface(logs: Logs, op: IdOp, *, streaming: bool, rows: int) -> Callable[[], Iterator[Batch]]:
    """Read with Hugging Face datasets in Arrow format, with the work in torch.

    Args:
        logs: Logs to read.
        op: Operation on ids.
        streaming: Whether Parquet is read; otherwise, the uncompressed Arrow files that the library wrote beforehand.
        rows: Rows requested at a time, which are then sliced into batches.
    """
    import torch

    torch.set_num_threads(1)  # with operations this small, several threads would mostly wait for each other
    data = load_dataset(logs, streaming).with_format("arrow")

    def run() -> Iterator[Batch]:
        for table in data.iter(batch_size=rows):
            (record_batch,) = table.combine_chunks().to_batches()
            for part in slices(record_batch):
                yield torch_batch(part, op)

    return run


def huggingface_torch(logs: Logs, op: IdOp) -> Callable[[], Iterator[Batch]]:
    """Stream one row group with Hugging Face datasets in torch format, which its documentation shows first."""
    import torch

    data = load_dataset(logs, streaming=True).with_format("torch")
    ranges = torch.tensor(RANGES).unsqueeze(1)

    def run() -> Iterator[Batch]:
        for columns in islice(data.iter(batch_size=BATCH_SIZE), ROW_GROUP_ROWS // BATCH_SIZE):
            dense = torch.stack([torch.nan_to_num(torch.as_tensor(columns[name])) for name in DENSE], dim=1)
            ids = torch.stack([columns[name] for name in IDS])
            yield Batch(dense.log1p_(), ids.remainder_(ranges), columns[LABEL])

    return run


def polars_frame(logs: Logs, op: IdOp, *, streaming: bool) -> Callable[[], Iterator[Batch]]:
    """Read with polars, which decodes and works in its own threads; the consumer converts batches to tensors.

    Args:
        logs: Logs to read.
        op: Operation on ids; only "modulo", because polars has no SigridHash.
        streaming: Whether to use `collect_batches` of a lazy query; otherwise, `read_parquet` file by file.
    """
    import polars as pl
    import torch

    assert op == "modulo"
    work = [
        *(pl.col(name).fill_null(0).log1p() for name in DENSE),
        *(pl.col(name) % RANGES[at] for at, name in enumerate(IDS)),
        pl.col(LABEL),
    ]

    def frames() -> Iterator[Any]:
        if streaming:
            yield from pl.scan_parquet(logs.files).select(work).collect_batches(chunk_size=BATCH_SIZE * 16)
        else:
            for file in logs.files:
                yield pl.read_parquet(file, columns=list(COLUMNS)).lazy().select(work).collect()

    def run() -> Iterator[Batch]:
        rest = None
        for frame in frames():
            whole = frame if rest is None or not len(rest) else pl.concat([rest, frame])
            num_full = len(whole) // BATCH_SIZE * BATCH_SIZE
            for start in range(0, num_full, BATCH_SIZE):
                part = whole.slice(start, BATCH_SIZE)
                dense = part.select(DENSE).to_numpy(order="fortran")
                ids = part.select(IDS).to_numpy(order="fortran")
                labels = part[LABEL].to_torch()
                yield Batch(torch.from_numpy(dense), torch.from_numpy(ids), labels)
            rest = whole.slice(num_full)

    return run


def load_dataset(logs: Logs, streaming: bool) -> Any:
    """Open the logs as a streamed dataset, or as Arrow files that the library writes beside the logs at first use."""
    os.environ["HF_DATASETS_OFFLINE"] = "1"
    os.environ["HF_HOME"] = str(logs.folder / "huggingface")
    import datasets

    datasets.disable_progress_bars()
    return datasets.load_dataset("parquet", data_files=logs.files, split="train", streaming=streaming)
