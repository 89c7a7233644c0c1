"""`ProcessGroup`: the trainers of a run; a single process, or data-parallel over `torch.distributed`.

Each trainer has all dense parameters and a slice of every global batch. Gradients are averaged over the rows of all
trainers, so a step equals that of one process on the global batch, except for the order of sums.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from headrace.errors import HeadraceError

__all__ = ["DataParallel", "PeerLost", "ProcessGroup", "SingleProcess", "lost_peers"]

Float64s = NDArray[np.float64]


class PeerLost(HeadraceError):
    """Another trainer of the run has died, or has returned to the newest checkpoint."""


class ProcessGroup(Protocol):
    """The trainers of a run. All methods are collective: all trainers call them in the same order.

    Attributes:
        rank: Rank of this trainer; trainer 0 writes the run's output.
        size: Number of trainers.
    """

    rank: int
    size: int

    def average(self, parameters: Sequence[Tensor], num_rows: int, *, wants_stop: bool) -> tuple[bool, int]:
        """Average the gradients over the rows of all trainers.

        Args:
            parameters: Parameters whose `grad` is of the mean loss over this trainer's rows.
            num_rows: Number of this trainer's rows.
            wants_stop: Whether this trainer was asked to stop.

        Returns:
            Whether any trainer was asked to stop, and the number of rows of all trainers.
        """

    def total(self, arrays: Sequence[Float64s]) -> list[Float64s]:
        """Sum arrays over all trainers."""

    def share(self, value: Any) -> Any:
        """Broadcast trainer 0's value, which must be JSON-able."""


class SingleProcess:
    """A single trainer."""

    rank = 0
    size = 1

    def average(self, parameters: Sequence[Tensor], num_rows: int, *, wants_stop: bool) -> tuple[bool, int]:
        """See `ProcessGroup`: gradients are unchanged."""
        return wants_stop, num_rows

    def total(self, arrays: Sequence[Float64s]) -> list[Float64s]:
        """See `ProcessGroup`."""
        return list(arrays)

    def share(self, value: Any) -> Any:
        """See `ProcessGroup`."""
        return value


class DataParallel:
    """Trainers in a process group of `torch.distributed`; any call raises `PeerLost` if one has died."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()

    def average(self, parameters: Sequence[Tensor], num_rows: int, *, wants_stop: bool) -> tuple[bool, int]:
        """See `ProcessGroup`; all gradients are sent in one message."""
        grads = [parameter.grad for parameter in parameters]
        sizes = [parameter.numel() for parameter in parameters]
        flat = torch.zeros(sum(sizes) + 2)
        views = torch.split(flat[:-2], sizes)
        for view, grad in zip(views, grads, strict=True):
            if grad is not None:
                torch.mul(grad.flatten(), num_rows, out=view)
        flat[-2], flat[-1] = num_rows, float(wants_stop)
        with lost_peers():
            dist.all_reduce(flat)
        flat[:-2] /= flat[-2].clone()
        for parameter, view in zip(parameters, views, strict=True):
            parameter.grad = view.view_as(parameter)
        return bool(flat[-1] > 0), int(flat[-2])  # exact below 2^24 rows

    def total(self, arrays: Sequence[Float64s]) -> list[Float64s]:
        """See `ProcessGroup`."""
        flat = torch.from_numpy(np.concatenate([array.ravel() for array in arrays]))
        with lost_peers():
            dist.all_reduce(flat)
        parts = np.split(flat.numpy(), np.cumsum([array.size for array in arrays])[:-1])
        return [part.reshape(array.shape) for part, array in zip(parts, arrays, strict=True)]

    def share(self, value: Any) -> Any:
        """See `ProcessGroup`."""
        data = np.frombuffer(json.dumps(value).encode(), dtype=np.uint8).copy() if self.rank == 0 else None
        size = torch.tensor([0 if data is None else len(data)])
        with lost_peers():
            dist.broadcast(size, 0)
            text = torch.empty(int(size), dtype=torch.uint8) if data is None else torch.from_numpy(data)
            dist.broadcast(text, 0)
        return json.loads(text.numpy().tobytes())


@contextmanager
def lost_peers() -> Iterator[None]:
    """Convert the errors of a broken connection to `PeerLost`."""
    try:
        yield
    except RuntimeError as error:  # raised by gloo when a connection closes or times out
        raise PeerLost(f"another trainer has died: {str(error).splitlines()[0]}") from error
