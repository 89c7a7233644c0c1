"""Pipelines that read data loaded by other libraries: `DataLoader`, tf.data, Ray Data, Hugging Face."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.errors import ConfigError, MissingExtra
from headrace.logs.source import ROW_ID, SourceBatch
from headrace.pipeline.pipeline import Pipeline
from headrace.pipeline.reading import from_source
from headrace.pipeline.sources import IterableSource, to_record_batch

__all__ = ["HuggingFaceSource", "from_dataloader", "from_huggingface", "from_ray", "from_tfdata"]

HUGGINGFACE_ROWS = 16_384
"""Rows per split of a Hugging Face dataset; its Arrow files are memory-mapped, so small splits are cheap."""


def from_dataloader(loader: Any, *, columns: Sequence[str] = ()) -> Pipeline:
    """A pipeline that reads the batches of a `torch.utils.data.DataLoader`, with all of its workers.

    Args:
        loader: Yields dicts of tensors, or tuples whose fields `columns` names, in the same order on every pass.
        columns: Column names for the fields of a tuple.

    Raises:
        ConfigError: The loader shuffles. Each pass would have a different order, so a stopped job could not be resumed.
    """
    if type(getattr(loader, "sampler", None)).__name__ in ("RandomSampler", "WeightedRandomSampler"):
        raise ConfigError(
            "from_dataloader: the loader shuffles, so passes differ in order and a stopped job cannot be resumed; "
            "use shuffle=False, and shuffle with .shuffle(num_rows=..., seed=...)"
        )
    return from_source(IterableSource(loader, columns=columns, name="DataLoader"))


def from_ray(dataset: Any) -> Pipeline:
    """A pipeline that reads a `ray.data.Dataset`, block by block, in the order of its blocks.

    Raises:
        MissingExtra: Ray is not installed.
    """
    _require("ray.data", "ray", "bench")
    dataset.context.execution_options.preserve_order = True  # by default Ray yields blocks as they finish
    blocks = _Reiterable(dataset, "iter_batches", batch_size=None, batch_format="pyarrow")
    return from_source(IterableSource(blocks, name="ray.data.Dataset"))


def from_tfdata(dataset: Any, *, columns: Sequence[str] = ()) -> Pipeline:
    """A pipeline that reads a batched `tf.data.Dataset` of dicts, or of tuples whose fields `columns` names.

    The order must be the same on every pass: a `shuffle` in it needs `reshuffle_each_iteration=False` and a seed.

    Raises:
        MissingExtra: TensorFlow is not installed.
    """
    _require("tensorflow", "tensorflow", "bench")
    return from_source(
        IterableSource(_Reiterable(dataset, "as_numpy_iterator"), columns=columns, name="tf.data.Dataset")
    )


def from_huggingface(dataset: Any, *, split_rows: int = HUGGINGFACE_ROWS) -> Pipeline:
    """A pipeline that reads a Hugging Face `datasets.Dataset` or `IterableDataset`.

    A `Dataset` is read by row number, so a resume skips directly to the next row. An `IterableDataset` is read from the
    start again, and rows that were used already are skipped.

    Args:
        dataset: The dataset.
        split_rows: Rows per split, read at once.

    Raises:
        MissingExtra: Hugging Face datasets is not installed.
    """
    _require("datasets", "datasets", "bench")
    arrow = dataset.with_format("arrow")
    if hasattr(dataset, "__len__"):
        return from_source(HuggingFaceSource(arrow, split_rows))
    return from_source(
        IterableSource(_Reiterable(arrow, "iter", batch_size=split_rows), name="datasets.IterableDataset")
    )


class HuggingFaceSource:
    """A map-style dataset in Arrow format; each split is a range of rows."""

    def __init__(self, dataset: Any, split_rows: int) -> None:
        """Wrap a dataset whose slices are Arrow tables."""
        self._dataset = dataset
        self._split_rows = split_rows

    def __len__(self) -> int:
        return -(-len(self._dataset) // self._split_rows)

    def read(self, split: int) -> Iterator[SourceBatch]:
        """Yield the single batch of a split."""
        first, last = self._bounds(split)
        rows = to_record_batch(self._dataset[first:last], where=self.describe(split))
        if ROW_ID not in rows.schema.names:
            rows = rows.append_column(pa.field(ROW_ID, pa.int64()), pa.array(np.arange(first, last)))
        yield SourceBatch(rows, rows.num_rows)

    def describe(self, split: int) -> str:
        """The row range of the split, counted from 0."""
        first, last = self._bounds(split)
        return f"datasets.Dataset, rows {first} to {last - 1}"

    def _bounds(self, split: int) -> tuple[int, int]:
        first = split * self._split_rows
        return first, min(first + self._split_rows, len(self._dataset))


class _Reiterable:
    """Calls a method of a dataset each time it is iterated."""

    def __init__(self, dataset: Any, method: str, **arguments: Any) -> None:
        self._dataset = dataset
        self._method = method
        self._arguments = arguments

    def __iter__(self) -> Iterator[Any]:
        return iter(getattr(self._dataset, self._method)(**self._arguments))


def _require(module: str, package: str, extra: str) -> None:
    try:
        import_module(module)
    except ImportError as error:
        raise MissingExtra(package, extra) from error
