"""`TunedRayData`: a Ray Data pipeline whose concurrency can change during iteration.

A running dataset's executor reads `execution_options.resource_limits` every 10 seconds. So the tuned value is its
number of CPUs, one per task. A change takes effect within 10 seconds and loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any

from headrace.errors import MissingExtra
from headrace.tuning.adapters.one_stage import OneStageJob

__all__ = ["TunedRayData"]


class TunedRayData(OneStageJob):
    """Iterates over the batches of a `ray.data.Dataset`, and is a `Job` that a `Tuner` can drive.

    loader = TunedRayData(ray.data.read_parquet("logs/").map_batches(clean), batch_size=8192)
    with Tuner(loader, "auto"):
        for batch in loader:
            ...
    """

    window_s = 10.0

    def __init__(self, dataset: Any, *, workers: int = 1, max_workers: int | None = None, **batching: Any) -> None:
        """Wrap a dataset; this loader then owns its `context`.

        Args:
            dataset: A dataset that has not been executed yet.
            workers: Initial number of CPUs.
            max_workers: Maximum number of CPUs; None for all CPUs of the Ray cluster.
            batching: Arguments of `Dataset.iter_batches`.

        Raises:
            MissingExtra: Ray is not installed.
        """
        try:
            ray: Any = import_module("ray")
            ray_data: Any = import_module("ray.data")
        except ImportError as error:
            raise MissingExtra("ray", "cluster") from error
        cluster = int(ray.cluster_resources().get("CPU", 1))
        super().__init__("dataset", workers, max_workers=max_workers or cluster)
        self._dataset, self._batching = dataset, batching
        self._limits: Callable[..., Any] = ray_data.ExecutionResources
        self._limit()

    def apply(self, values: Mapping[str, int]) -> None:
        """Set the number of CPUs. Thread-safe."""
        super().apply(values)
        self._limit()

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the batches; set `preserve_order` in the dataset's context for a deterministic order."""
        return self._count(iter(self._dataset.iter_batches(**self._batching)))

    def _limit(self) -> None:
        self._dataset.context.execution_options.resource_limits = self._limits(cpu=self.workers)
