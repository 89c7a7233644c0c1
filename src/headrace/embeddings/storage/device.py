"""`DeviceStorage`: rows and optimizer state as tensors on a device or in pinned host memory.

The host maps ids to rows, because batches are made there; a step copies one row number per unique key to the device.
Initial values are computed on the host and copied when a row is first read or updated. Results equal those of
`HostStorage` up to rounding of sums and square roots; if a device adds in arbitrary order (`index_add` on CUDA), runs
may differ in the last bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headrace.embeddings.keys import Keys
from headrace.embeddings.ops.hashing import key_streams
from headrace.embeddings.storage.device_rounding import rounded
from headrace.embeddings.storage.inheritance import inherited_columns
from headrace.embeddings.storage.protocol import NEW, Inheritance, MakeStorage, RowLayout
from headrace.embeddings.storage.row_formats import TENSOR_DTYPES, as_tensor, to_float32

__all__ = ["DeviceStorage", "Memory"]

Memory = Literal["device", "host"]
"""Where rows are kept for a model on a device: in device memory, or in pinned host memory."""

Int64s = npt.NDArray[np.int64]


class DeviceStorage:
    """A `RowStorage` on a device; `gather` returns a tensor and `update` takes one.

    Args:
        layout: Layout of rows.
        capacity: Initial capacity in rows.
        device: Device that the model computes on; any torch device, including "cpu".
        memory: Where rows are kept.

    Attributes:
        weights: [capacity, D] in the storage dtype of the tables; int8 [capacity, D + 1].
        state: float32 [capacity, W].
    """

    def __init__(self, layout: RowLayout, capacity: int, *, device: torch.device | str, memory: Memory) -> None:
        self._layout = layout
        self.device = torch.device(device)
        self._is_pinned = memory == "host" and self.device.type == "cuda"
        self._home = torch.device("cpu") if memory == "host" else self.device
        self.weights = self._zeros((capacity, layout.width), TENSOR_DTYPES[layout.row_format])
        self.state = self._zeros((capacity, layout.optimizer.state_width), torch.float32)

    @classmethod
    def on(cls, device: torch.device | str, memory: Memory = "device") -> MakeStorage:
        """Return a function that creates storages on a device."""
        return partial(cls, device=device, memory=memory)

    @property
    def capacity(self) -> int:
        """See `RowStorage`."""
        return len(self.weights)

    @property
    def num_bytes(self) -> int:
        """See `RowStorage`."""
        return sum(tensor.nbytes for tensor in (self.weights, self.state))

    def gather(self, rows: Int64s, keys: Keys) -> Tensor:
        """See `RowStorage.gather`."""
        values = self._floats(np.maximum(rows, 0))
        new = np.flatnonzero(rows == NEW)
        if len(new):
            first = self._layout.first_values.widened(keys.take(new), self._layout.embedding_dim)
            values.index_copy_(0, torch.from_numpy(new).to(self.device), torch.from_numpy(first).to(self.device))
        return values

    def initialize(self, rows: Int64s, keys: Keys) -> None:
        """See `RowStorage.initialize`."""
        first = self._layout.first_values.stored(keys, self._layout.embedding_dim)
        state = self._layout.optimizer.initial_state[keys.tables]
        self._put(rows, as_tensor(first, self._layout.row_format), torch.from_numpy(state))

    def inherit(self, inheritance: Inheritance) -> None:
        """See `RowStorage.inherit`."""
        sources = self.columns(inheritance.sources)
        self.set_columns(inheritance.rows, inherited_columns(self._layout, inheritance, sources))

    def update(
        self, rows: Int64s, keys: Keys, gradients: Any, *, step: int, num_rows: int = 1, lr_factor: float = 1.0
    ) -> None:
        """See `RowStorage.update`; gradients may also be an array."""
        if isinstance(gradients, np.ndarray):
            gradients = torch.from_numpy(gradients)
        keep = np.flatnonzero(rows)
        rows, keys = rows[keep], keys.take(keep)
        gradients = gradients.to(self.device)
        if len(keep) < len(gradients):
            gradients = gradients.index_select(0, torch.from_numpy(keep).to(self.device))
        weights, state = self._floats(rows), self._take(self.state, rows)
        tables = torch.from_numpy(keys.tables.astype(np.int64)).to(self.device)
        optimizer = self._layout.optimizer
        weights, state = optimizer.updated(
            weights, gradients, state, tables, step, num_rows=num_rows, lr_factor=lr_factor
        )
        rounding = self._layout.rounding(step)
        streams = torch.from_numpy(key_streams(rounding.table_seeds, keys.tables, keys.ids)).to(self.device)
        self._put(rows, rounded(weights, streams, self._layout.row_format, int(rounding.seed)), state)

    def columns(self, rows: Int64s) -> dict[str, npt.NDArray[Any]]:
        """See `RowStorage.columns`."""
        weights, state = (self._take(tensor, rows).cpu() for tensor in (self.weights, self.state))
        bits = weights if weights.dtype.itemsize != 2 else weights.view(torch.uint16)
        return {"weights": bits.numpy(), **self._layout.slot_columns(state.numpy())}

    def set_columns(self, rows: Int64s, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        """See `RowStorage.set_columns`."""
        weights = as_tensor(np.array(columns["weights"]), self._layout.row_format)
        self._put(rows, weights, torch.from_numpy(self._layout.state_of(columns, len(rows))))

    def fastest_order(self, rows: Int64s) -> Int64s:
        """See `RowStorage.fastest_order`."""
        return rows

    def discard(self, rows: Int64s) -> None:
        """See `RowStorage.discard`; values of rows that are not in use do no harm."""

    def grow(self, capacity: int) -> None:
        """See `RowStorage.grow`."""
        self.weights, self.state = (self._resized(tensor, capacity) for tensor in (self.weights, self.state))

    def compact(self, rows: Int64s, capacity: int) -> None:
        """See `RowStorage.compact`."""
        places = torch.from_numpy(rows).to(self._home)
        self.weights, self.state = (
            self._resized(tensor.index_select(0, places), capacity) for tensor in (self.weights, self.state)
        )

    def view(self) -> Tensor:
        """See `RowStorage.view`."""
        return self.weights

    def _take(self, tensor: Tensor, rows: Int64s) -> Tensor:
        """Copy some rows to the device."""
        return tensor.index_select(0, torch.from_numpy(rows).to(self._home)).to(self.device)

    def _floats(self, rows: Int64s) -> Tensor:
        """Copies of some rows as float32 [U, D] on the device."""
        return to_float32(self._take(self.weights, rows), self._layout.row_format)

    def _put(self, rows: Int64s, weights: Tensor, state: Tensor) -> None:
        places = torch.from_numpy(rows).to(self._home)
        self.weights.index_copy_(0, places, weights.to(self._home))
        self.state.index_copy_(0, places, state.to(self._home))

    def _zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self._home, pin_memory=self._is_pinned)

    def _resized(self, kept: Tensor, capacity: int) -> Tensor:
        resized = self._zeros((capacity, *kept.shape[1:]), kept.dtype)
        resized[: len(kept)] = kept
        return resized
