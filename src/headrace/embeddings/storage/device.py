"""`DeviceTable`: rows and optimizer state on a device, or in pinned host memory beside it, in plain torch.

Ids become rows on the host, where batches come from, by the same directory, admission and metadata as in
`EmbeddingTable`; what moves to the device in a step is one row number per unique key. So checkpoints are the same, and
a table goes from host to device and back without a change in any bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headrace.embeddings.config import TableConfig
from headrace.embeddings.keys import Keys
from headrace.embeddings.ops.hashing import key_streams
from headrace.embeddings.optimizers import Rounding, SparseOptimizer
from headrace.embeddings.storage.device_rounding import rounded
from headrace.embeddings.storage.row_formats import FORMATS, as_tensor, storage_dtype
from headrace.embeddings.tables.arena import Arena, slot_columns
from headrace.embeddings.tables.index import NEW
from headrace.embeddings.tables.initializer import fill_rows
from headrace.embeddings.tables.table import EmbeddingTable

__all__ = ["DeviceTable", "Memory"]

Memory = Literal["device", "host"]
"""Where rows live when a model is on a device: there, or in the host's page-locked memory."""

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]


class DeviceArena(Arena):
    """An arena whose rows and optimizer state are tensors; directory columns and metadata stay NumPy arrays.

    All first values are made on the host and copied, so for a moment both exist.

    Attributes:
        rows: [capacity, dim] in the table's format.
        states: float32 [capacity, width].
    """

    def __init__(self, table: DeviceTable, optimizer: SparseOptimizer) -> None:
        self.device = table.device
        self._is_pinned = table.memory == "host" and table.device.type == "cuda"
        self._home = torch.device("cpu") if table.memory == "host" else table.device
        super().__init__(table.spaces, table.embedding_dim, optimizer, seed=table.seed)

    def clear(self) -> None:
        """See `Arena.clear`."""
        super().clear()
        self.complete()
        self.rows = self._at_home(as_tensor(self.weights, self.row_format))
        self.states = self._at_home(torch.from_numpy(self.state))
        self.weights, self.state = self.weights[:0].copy(), self.state[:0].copy()  # a view would keep the whole array

    @property
    def num_bytes(self) -> int:
        """See `Arena.num_bytes`."""
        return super().num_bytes + sum(t.numel() * t.element_size() for t in (self.rows, self.states))

    def read_state(self, rows: Int64s) -> tuple[Tensor, Tensor]:
        """Rows float32 [U, dim] and their state [U, width], copies on the device."""
        places = torch.from_numpy(rows).to(self._home)
        weights, state = (table.index_select(0, places).to(self.device) for table in (self.rows, self.states))
        return weights.float(), state

    def write(self, rows: Int64s, weights: Tensor, state: Tensor) -> None:
        """Rows in the table's format, and their state."""
        places = torch.from_numpy(rows).to(self._home)
        self.rows.index_copy_(0, places, weights.to(self._home))
        self.states.index_copy_(0, places, state.to(self._home))

    def read(self, rows: Int64s, spaces: Int32s, ids: Int64s) -> Tensor:  # type: ignore[override]
        """See `Arena.read`; on the device."""
        new = np.flatnonzero(rows == NEW)
        places = torch.from_numpy(np.maximum(rows, 0)).to(self._home)
        values = self.rows.index_select(0, places).to(self.device).float()
        if len(new):
            first = torch.from_numpy(self.first_values(spaces[new], ids[new])).to(self.device)
            values.index_copy_(0, torch.from_numpy(new).to(self.device), first)
        return values

    def row_columns(self, rows: Int64s) -> dict[str, npt.NDArray[Any]]:
        """See `Arena.row_columns`."""
        places = torch.from_numpy(rows).to(self._home)
        columns = {"weights": _bits(self.rows.index_select(0, places).cpu())}
        return columns | slot_columns(self._optimizer, self.states.index_select(0, places).cpu().numpy())

    def set_row_columns(self, rows: Int64s, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        """See `Arena.set_row_columns`."""
        slots = [columns[f"slot.{slot.name}"] for slot in self._optimizer.slots]
        state = torch.from_numpy(np.concatenate([np.empty((len(rows), 0), np.float32), *slots], axis=1))
        self.write(rows, as_tensor(np.array(columns["weights"]), self.row_format), state)

    def _grow_rows(self, capacity: int) -> None:
        self.rows = self._grown(self.rows, capacity)
        self.states = self._grown(self.states, capacity)

    def _initialize(self, rows: Int64s, spaces: Int32s, ids: Int64s) -> None:
        stored = np.empty((len(rows), self.embedding_dim), dtype=storage_dtype(self.row_format))
        places = np.arange(len(rows))
        fill_rows(stored, places, spaces, ids, self.space_seeds, self._scales, FORMATS[self.row_format])
        self.write(rows, as_tensor(stored, self.row_format), torch.from_numpy(self._optimizer.initial_state[spaces]))

    def _clear_rows(self, rows: Int64s) -> None:
        places = torch.from_numpy(rows).to(self._home)
        for tensor in (self.rows, self.states):
            tensor.index_fill_(0, places, 0)

    def _at_home(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory() if self._is_pinned else tensor.to(self._home, copy=True)

    def _grown(self, tensor: Tensor, capacity: int) -> Tensor:
        shape = (capacity, *tensor.shape[1:])
        grown = torch.zeros(shape, dtype=tensor.dtype, device=self._home, pin_memory=self._is_pinned)
        grown[: len(tensor)] = tensor
        return grown


class DeviceTable(EmbeddingTable):
    """An `EmbeddingTable` whose rows are read, and updated, as tensors on a device.

    `read` gives a tensor and `update` takes one. The numbers are those of the host's table up to the rounding of sums
    and roots; where a device adds in any order (`index_add` on CUDA), runs may differ in the last bits.

    Args:
        spaces: Name -> config.
        embedding_dim: Floats per row.
        seed: Of first values and hashes.
        device: Where models compute; any that torch has, "cpu" included.
        memory: Where rows live.
    """

    arena: DeviceArena

    def __init__(
        self,
        spaces: Mapping[str, TableConfig],
        embedding_dim: int,
        *,
        seed: int,
        device: torch.device | str,
        memory: Memory = "device",
    ) -> None:
        self.device = torch.device(device)
        self.memory: Memory = memory
        super().__init__(spaces, embedding_dim, seed=seed)

    @property
    def weights(self) -> Tensor:
        """See `EmbeddingTable.weights`."""
        return self.arena.rows

    @classmethod
    def of(cls, table: EmbeddingTable, device: torch.device | str, memory: Memory = "device") -> DeviceTable:
        """The same table, moved; the one given is not used any more."""
        moved = cls(table.spaces, table.embedding_dim, seed=table.seed, device=device, memory=memory)
        moved.load_state_dict(table.state_dict())
        return moved

    def _make_arena(self) -> DeviceArena:
        return DeviceArena(self, self._optimizer)

    def _optimize(self, rows: Int64s, keys: Keys, gradients: Any) -> None:
        if isinstance(gradients, np.ndarray):
            gradients = torch.from_numpy(gradients)
        keep = np.flatnonzero(rows)
        rows = rows[keep]
        gradients = gradients.to(self.device)
        if len(keep) < len(gradients):
            gradients = gradients.index_select(0, torch.from_numpy(keep).to(self.device))
        weights, state = self.arena.read_state(rows)
        space_of_row = torch.from_numpy(keys.spaces[keep].astype(np.int64)).to(self.device)
        weights, state = self._optimizer.updated(weights, gradients, state, space_of_row, self.step)
        rounding = Rounding.of(self.arena.row_format, self.seed, self.step, self.arena.space_seeds)
        streams = key_streams(rounding.space_seeds, keys.spaces[keep], keys.ids[keep])
        counters = torch.from_numpy(streams).to(self.device)
        self.arena.write(rows, rounded(weights, counters, self.arena.row_format, int(rounding.seed)), state)


def _bits(rows: Tensor) -> npt.NDArray[Any]:
    """Rows as a saved table holds them: float32, or the uint16 of 16-bit formats."""
    array: npt.NDArray[Any] = (rows if rows.dtype == torch.float32 else rows.view(torch.uint16)).numpy()
    return array
