"""The arms of the loader benchmarks by name: a loader and its settings each."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module, util
from typing import Any

from peers.data import Logs
from peers.work import IdOp

__all__ = ["ARMS", "BY_ROW", "DECODE", "LOADERS", "OURS", "PREPARED", "Arm", "missing"]


@dataclass(frozen=True)
class Arm:
    """A loader with its settings.

    Attributes:
        name: Name shown in tables.
        module: Module of this package with the loader.
        function: Function of the module that creates the loader.
        settings: Keyword arguments of the function.
        package: Package that must be installed.
        hashes: Whether the loader supports SigridHash.
        quick: Whether the arm is measured with `--quick`.
        fresh: Whether each sample needs a new process.
        all_rows: Whether the loader reads all rows; slow ones read one row group.
    """

    name: str
    module: str
    function: str
    settings: dict[str, Any] = field(default_factory=dict)
    package: str = "torch"
    hashes: bool = True
    quick: bool = True
    fresh: bool = False
    all_rows: bool = True

    def make(self, logs: Logs, op: IdOp) -> Any:
        """Create the loader, and return a function that starts a pass and returns its batches."""
        return getattr(import_module(f"peers.{self.module}"), self.function)(logs, op, **self.settings)


OURS = (
    Arm("headrace, 2 workers", "ours", "parquet", {"workers": 2}),
    Arm("headrace, 1 worker", "ours", "parquet", {"workers": 1}),
    Arm("headrace, inline", "ours", "parquet", {"workers": 0}),
)

DECODE = (
    Arm("decode only, 2 threads", "ours", "decode", {"threads": 2}),
    Arm("decode only, 1 thread", "ours", "decode", {"threads": 1}),
)

LOADERS = (
    Arm("tf.data, generator of batches", "tfdata", "from_generator", {"rows": 4096}, "tensorflow"),
    Arm("tf.data, TFRecord, parsed by batch", "tfdata", "tfrecord", {"vectorised": True}, "tensorflow", all_rows=False),
    Arm("DataLoader, batches, 0 workers", "torch_loaders", "dataloader", {"workers": 0}, quick=False),
    Arm(
        "DataLoader, batches, 0 workers, 1 thread",
        "torch_loaders",
        "dataloader",
        {"workers": 0, "torch_threads": 1},
        quick=False,
    ),
    Arm("DataLoader, batches, 1 worker", "torch_loaders", "dataloader", {"workers": 1}, quick=False),
    Arm("DataLoader, batches, 2 workers", "torch_loaders", "dataloader", {"workers": 2}),
    Arm("torchdata nodes, 1 thread", "torch_loaders", "nodes", {"workers": 1}, "torchdata", quick=False),
    Arm("torchdata nodes, 2 threads", "torch_loaders", "nodes", {"workers": 2}, "torchdata"),
    Arm("Ray Data, work in tasks", "frames", "ray_data", {"in_tasks": True}, "ray", quick=False, fresh=True),
    Arm("Ray Data, work in the consumer", "frames", "ray_data", {"in_tasks": False}, "ray", quick=False, fresh=True),
    Arm("datasets, streamed, Arrow format", "frames", "huggingface", {"streaming": True, "rows": 4096}, "datasets"),
    Arm("polars, streaming engine", "frames", "polars_frame", {"streaming": True}, "polars", hashes=False),
    Arm("polars, file by file", "frames", "polars_frame", {"streaming": False}, "polars", hashes=False, quick=False),
)
"""The peers, each with its best and with its usual settings."""

BY_ROW = (
    Arm("datasets, streamed, torch format", "frames", "huggingface_torch", {}, "datasets", all_rows=False),
    Arm("tf.data, TFRecord, parsed by row", "tfdata", "tfrecord", {"vectorised": False}, "tensorflow", all_rows=False),
    *(
        Arm(
            f"DataLoader, rows, {workers} workers",
            "torch_loaders",
            "dataloader",
            {"workers": workers, "by_row": True},
            all_rows=False,
        )
        for workers in (0, 1, 2)
    ),
)
"""Peers as most tutorials use them; they are slow, so they read fewer rows."""

PREPARED = (
    Arm("headrace, 2 workers, Arrow file", "ours", "arrow", {"workers": 2}),
    Arm("datasets, its Arrow files", "frames", "huggingface", {"streaming": False, "rows": 4096}, "datasets"),
)
"""Loaders of uncompressed Arrow files that were written beforehand, so that nothing is decoded."""

ARMS = {arm.name: arm for arm in (*OURS, *DECODE, *LOADERS, *BY_ROW, *PREPARED)}


def missing(arm: Arm) -> bool:
    """Return whether the package of an arm is not installed."""
    return util.find_spec(arm.package) is None
