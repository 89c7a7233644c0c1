"""`TunedRayData`: a Ray Data pipeline whose concurrency may change while it is iterated.

The executor of a dataset looks at `execution_options.resource_limits` every 10 seconds, also while it runs. So its
CPUs, one for each task, are the number to tune; a change shows within 10 seconds, and loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any

from headrace.errors import MissingExtra
from headrace.tuning.adapters.one_stage import OneStageJob

__all__ = ["TunedRayData"]


class TunedRayData(OneStageJob):
    """Iterates over the batches of a `ray.data.Dataset`; a `Job`, so a `Tuner` can drive it.

    loader = TunedRayData(ray.data.read_parquet("logs/").map_batches(clean), batch_size=8192)
    with Tuner(loader, "auto"):
        for batch in loader:
            ...
    """

    window_s = 10.0

    def __init__(self, dataset: Any, *, workers: int = 1, max_workers: int | None = None, **batching: Any) -> None:
        """Take a dataset; its `context` belongs to this loader from now on.

        Args:
            dataset: Not yet executed.
            workers: CPUs that tuning begins with.
            max_workers: Most CPUs; None for those of the Ray cluster.
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
        """Set the CPUs; from any thread."""
        super().apply(values)
        self._limit()

    def __iter__(self) -> Iterator[Any]:
        """The batches, in the order of Ray Data: set `preserve_order` in its context for the same one each time."""
        return self._count(iter(self._dataset.iter_batches(**self._batching)))

    def _limit(self) -> None:
        self._dataset.context.execution_options.resource_limits = self._limits(cpu=self.workers)
