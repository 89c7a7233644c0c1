"""`PipelineDataset`: a pipeline as a torch `IterableDataset`, for Lightning, `StatefulDataLoader` and plain loops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from headrace.errors import ConfigError
from headrace.pipeline.engine.batch_iterator import BatchIterator

__all__ = ["PipelineDataset"]


class PipelineDataset(IterableDataset[Any]):
    """Iterates over the batches of a pipeline; give it to a `DataLoader` with `batch_size=None, num_workers=0`.

    The iterator it gives has `state_dict` and `load_state_dict`, and so has the dataset.
    """

    def __init__(self, open_batches: Callable[..., BatchIterator], **options: Any) -> None:
        """Use `Pipeline.as_dataset`; `open_batches` is `Pipeline.open`."""
        self._open = open_batches
        self._options = options
        self._batches: BatchIterator | None = None
        self._state: Mapping[str, Any] | None = None

    def __iter__(self) -> BatchIterator:
        """Open the pipeline: where a loaded state says, the first time, else at the beginning.

        Raises:
            ConfigError: In a worker process of a `DataLoader`.
        """
        if get_worker_info() is not None:
            raise ConfigError(
                "as_dataset: opened in a worker process of a DataLoader, where each would read everything; "
                "use DataLoader(..., num_workers=0): the pipeline has its own workers (open(workers=...))"
            )
        if self._batches is not None:
            self._batches.close()
        state, self._state = self._state, None
        self._batches = self._open(**self._options, state=state)
        return self._batches

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next pass: other random orders and numbers."""
        self._options["epoch"] = epoch

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch begins."""
        if self._state is not None:
            return dict(self._state)
        if self._batches is not None:
            return self._batches.state_dict()
        with self._open(**self._options) as unread:
            return unread.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Begin the next pass there."""
        self._state = dict(state)
