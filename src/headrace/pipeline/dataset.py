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

    Both the dataset and its iterators have `state_dict` and `load_state_dict`.
    """

    def __init__(self, open_batches: Callable[..., BatchIterator], **options: Any) -> None:
        """Use `Pipeline.as_dataset`; `open_batches` is `Pipeline.open`."""
        self._open = open_batches
        self._options = options
        self._batches: BatchIterator | None = None
        self._state: Mapping[str, Any] | None = None

    def __iter__(self) -> BatchIterator:
        """Open the pipeline at a loaded state the first time, and at the beginning after that.

        Raises:
            ConfigError: In a worker process of a `DataLoader`.
        """
        if get_worker_info() is not None:
            raise ConfigError(
                "as_dataset: opened in a worker process of a DataLoader, where every worker would read all rows; "
                "use DataLoader(..., num_workers=0): the pipeline has its own workers (open(workers=...))"
            )
        if self._batches is not None:
            self._batches.close()
        state, self._state = self._state, None
        self._batches = self._open(**self._options, state=state)
        return self._batches

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass, which changes the shuffle order and other random numbers."""
        self._options["epoch"] = epoch

    def state_dict(self) -> dict[str, Any]:
        """The position of the next batch."""
        if self._state is not None:
            return dict(self._state)
        if self._batches is not None:
            return self._batches.state_dict()
        with self._open(**self._options) as unread:
            return unread.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Start the next pass at a saved position."""
        self._state = dict(state)
