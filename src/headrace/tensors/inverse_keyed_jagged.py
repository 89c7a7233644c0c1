"""`InverseKeyedJaggedTensor`: deduplicated id lists of features that repeat together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from headrace.errors import MissingExtra
from headrace.messages import shorten_list
from headrace.tensors.jagged_kernels import count_selected, find_equal_rows, select_rows
from headrace.tensors.keyed_jagged import KeyedJaggedTensor, keys_shown

__all__ = ["InverseKeyedJaggedTensor"]


@dataclass(frozen=True, eq=False)
class InverseKeyedJaggedTensor:
    """Deduplicated id lists of a group of features: the unique rows, and an inverse lookup from rows to unique rows.

    For example, two features and four rows, of which the first three belong to one session (features down, batch
    across)::

                     row 0      row 1      row 2      row 3
        watched   [10, 11]   [10, 11]   [10, 11]       [12]
        liked         [7]        [7]         []         [7]

    Rows 0 and 1 are equal in both features; row 2 differs in one. So the batch of B = 4 rows has U = 3 unique rows::

        keys           = ("watched", "liked")
        values         = [10, 11, 10, 11, 12, 7, 7]   int64 [N]
        lengths        = [ 2,  2,  1,  1, 0, 1]       int32 [F * U], feature-major
        offsets        = [ 0,  2,  4,  5, 6, 6, 7]    int64 [F * U + 1]
        inverse_lookup = [ 0,  0,  1,  2]             int32 [B]

    Histories that only shift (append the newest, drop the oldest) overlap. Then rows are slices of one buffer, with
    `starts` instead of `offsets`::

        history   [1, 2, 3]   [2, 3, 4]   [3, 4]      three unique rows

        values  = [1, 2, 3, 4]
        starts  = [0, 1, 2]                           int64 [F * U]
        lengths = [3, 3, 2]

    Attributes:
        keys: Feature names, F of them, all different.
        values: int64 [N], the ids.
        lengths: int32 [F * U], ids per feature and unique row.
        offsets: int64 [F * U + 1], cumulative lengths; None if there are `starts`.
        inverse_lookup: int32 [B]: row i of the batch is unique row `inverse_lookup[i]`. Unused unique rows are allowed
            (after `rows`); `compact` drops them.
        unique_stride: Number of unique rows U.
        weights: float32 [N] or None, one weight per id.
        starts: int64 [F * U] or None: start of each list in `values`; lists may overlap.

    The constructor does not check its arguments; use `headrace.tensors.validate`. Instances are never mutated and may
    be shared between threads. The name and `inverse_lookup` are from RecD (arXiv 2211.05239, section on the IKJT),
    which mentions slices of a shared buffer as an extension.
    """

    keys: tuple[str, ...]
    values: Tensor
    lengths: Tensor
    offsets: Tensor | None
    inverse_lookup: Tensor
    unique_stride: int
    weights: Tensor | None = None
    starts: Tensor | None = None

    @classmethod
    def from_keyed_jagged(
        cls, tensor: KeyedJaggedTensor, *, order: Literal["any", "adjacent"] = "any"
    ) -> InverseKeyedJaggedTensor:
        """Deduplicate a plain tensor on the CPU, with unique rows in order of first occurrence.

        Args:
            tensor: The tensor, whose features become one group. Rows are equal if all their lists are, including
                weights.
            order: "any" hashes rows; "adjacent" only compares each row with the previous one, which is several times
                faster, and equivalent if equal rows are adjacent, as in session order.
        """
        inverse = torch.empty(tensor.stride, dtype=torch.int32)
        first_rows = torch.empty(tensor.stride, dtype=torch.int64)
        bits = np.empty(0, np.int32) if tensor.weights is None else tensor.weights.numpy().view(np.int32)
        unique = find_equal_rows(
            tensor.values.numpy(),
            bits,
            tensor.offsets[:-1].numpy(),
            tensor.lengths.numpy(),
            len(tensor.keys),
            order == "adjacent",
            inverse.numpy(),
            first_rows.numpy(),
        )
        return cls.of_unique(_gather(tensor, tensor.offsets[:-1], first_rows[:unique]), inverse)

    @classmethod
    def of_unique(cls, unique: KeyedJaggedTensor, inverse_lookup: Tensor) -> InverseKeyedJaggedTensor:
        """Create from unique rows as a plain tensor, sharing its memory, and int32 [B], the unique row of each row."""
        return cls(
            unique.keys, unique.values, unique.lengths, unique.offsets, inverse_lookup, unique.stride, unique.weights
        )

    def __repr__(self) -> str:
        rows = f"{len(self.inverse_lookup):,} rows, {self.unique_stride:,} of them unique"
        return f"InverseKeyedJaggedTensor({rows}, {len(self.values):,} values of {keys_shown(self.keys)})"

    @property
    def stride(self) -> int:
        """Number of rows B in the batch."""
        return int(self.inverse_lookup.numel())

    @property
    def unique(self) -> KeyedJaggedTensor:
        """The unique rows as a plain tensor of stride U; shares memory unless rows are slices of a shared buffer."""
        if self.offsets is not None:
            return KeyedJaggedTensor(
                self.keys, self.values, self.lengths, self.offsets, self.unique_stride, self.weights
            )
        every = torch.arange(self.unique_stride, device=self.lengths.device)
        return _gather(self, self._starts, every)

    def expand(self) -> KeyedJaggedTensor:
        """The plain tensor of B rows, as without deduplication."""
        return _gather(self, self._starts, self.inverse_lookup)

    def __getitem__(self, key: str) -> InverseKeyedJaggedTensor:
        """The tensor of one feature, sharing memory."""
        index = self.keys.index(key)
        start, stop = index * self.unique_stride, (index + 1) * self.unique_stride
        lengths, inverse, unique = self.lengths[start:stop], self.inverse_lookup, self.unique_stride
        if self.offsets is None:
            own = self._starts[start:stop]
            return InverseKeyedJaggedTensor((key,), self.values, lengths, None, inverse, unique, self.weights, own)
        first, last = int(self.offsets[start]), int(self.offsets[stop])
        weights = None if self.weights is None else self.weights[first:last]
        offsets = self.offsets[start : stop + 1] - first
        return InverseKeyedJaggedTensor((key,), self.values[first:last], lengths, offsets, inverse, unique, weights)

    def rows(self, start: int, stop: int) -> InverseKeyedJaggedTensor:
        """Rows `start` to `stop` of the batch, sharing memory and keeping all unique rows; see `compact`."""
        part = self.inverse_lookup[start:stop]
        return InverseKeyedJaggedTensor(
            self.keys, self.values, self.lengths, self.offsets, part, self.unique_stride, self.weights, self.starts
        )

    def compact(self) -> InverseKeyedJaggedTensor:
        """Remove unused unique rows; slices of a shared buffer become separate lists."""
        used, inverse = torch.unique(self.inverse_lookup, return_inverse=True)
        return InverseKeyedJaggedTensor.of_unique(_gather(self, self._starts, used), inverse.to(torch.int32))

    @classmethod
    def concat(cls, parts: Sequence[InverseKeyedJaggedTensor]) -> InverseKeyedJaggedTensor:
        """Concatenate batches with the same keys; equal unique rows of different parts are not merged.

        Raises:
            ValueError: There are no parts, or keys or the presence of weights differ.
        """
        _check_alike(parts)
        first, num_keys = parts[0], len(parts[0].keys)
        shifts = _cumulated([part.values.numel() for part in parts])
        rows_before = _cumulated([part.unique_stride for part in parts])
        stride = rows_before[-1]
        lengths = torch.cat([part.lengths.view(num_keys, -1) for part in parts], dim=1).reshape(-1)
        starts = [(part._starts + shift).view(num_keys, -1) for part, shift in zip(parts, shifts[:-1], strict=True)]
        joined = cls(
            first.keys,
            torch.cat([part.values for part in parts]),
            lengths,
            None,
            torch.cat([part.inverse_lookup + rows for part, rows in zip(parts, rows_before[:-1], strict=True)]),
            stride,
            None if first.weights is None else torch.cat([part.weights for part in parts if part.weights is not None]),
            torch.cat(starts, dim=1).reshape(-1),
        )
        if any(part.starts is not None for part in parts):
            return joined
        return cls.of_unique(joined.unique, joined.inverse_lookup)

    def to_lists(self) -> dict[str, list[list[int]]]:
        """The ids of all B rows as Python lists, for tests and for printing."""
        return self.expand().to_lists()

    @property
    def num_bytes(self) -> int:
        """Bytes held by the tensors."""
        parts = [self.values, self.lengths, self.offsets, self.starts, self.inverse_lookup, self.weights]
        return sum(part.nbytes for part in parts if part is not None)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> InverseKeyedJaggedTensor:
        """Copy the tensor to a device."""
        return self._map(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> InverseKeyedJaggedTensor:
        """Copy the tensor to page-locked host memory."""
        return self._map(lambda part: part.pin_memory())

    def to_torchrec(self) -> Any:
        """Convert to TorchRec's variable-batch `KeyedJaggedTensor`: U rows per key, and inverse indices [F, B].

        Raises:
            MissingExtra: torchrec is not installed.
        """
        try:
            from torchrec.sparse.jagged_tensor import KeyedJaggedTensor as TorchRecTensor
        except ImportError as error:
            raise MissingExtra("torchrec", "bench") from error
        unique, keys = self.unique, list(self.keys)
        return TorchRecTensor(
            keys=keys,
            values=unique.values,
            lengths=unique.lengths,
            offsets=unique.offsets,
            weights=unique.weights,
            stride_per_key_per_rank=[[self.unique_stride]] * len(keys),
            inverse_indices=(keys, self.inverse_lookup.to(torch.int64).expand(len(keys), -1).contiguous()),
        )

    @classmethod
    def from_torchrec(cls, tensor: Any) -> tuple[InverseKeyedJaggedTensor, ...]:
        """Convert a variable-batch `torchrec.KeyedJaggedTensor` to groups of neighbouring keys with equal inverse
        indices.

        TorchRec stores inverse indices per key; keys that share them become one group.
        """
        names = list(tensor.keys())
        by_name = dict(zip(*tensor.inverse_indices(), strict=True))
        groups: list[list[str]] = []
        for key in names:
            alike = bool(groups) and torch.equal(by_name[groups[-1][-1]], by_name[key])
            alike = alike and tensor[groups[-1][-1]].lengths().numel() == tensor[key].lengths().numel()
            if alike:
                groups[-1].append(key)
            else:
                groups.append([key])
        return tuple(cls._of_torchrec_keys(tensor, keys, by_name[keys[0]]) for keys in groups)

    @classmethod
    def _of_torchrec_keys(cls, tensor: Any, keys: list[str], inverse: Tensor) -> InverseKeyedJaggedTensor:
        parts = [tensor[key] for key in keys]
        weights = [part.weights_or_none() for part in parts]
        unique = KeyedJaggedTensor.from_lengths(
            keys,
            torch.cat([part.values() for part in parts]).to(torch.int64),
            torch.cat([part.lengths() for part in parts]).to(torch.int32),
            None if weights[0] is None else torch.cat(weights).to(torch.float32),
        )
        return cls.of_unique(unique, inverse.to(torch.int32))

    @property
    def _starts(self) -> Tensor:
        """Start of each list, in either form."""
        if self.starts is not None:
            return self.starts
        assert self.offsets is not None, "an IKJT has offsets or starts"
        return self.offsets[:-1]

    def _map(self, change: Callable[[Tensor], Tensor]) -> InverseKeyedJaggedTensor:
        def of(part: Tensor | None) -> Tensor | None:
            return None if part is None else change(part)

        return InverseKeyedJaggedTensor(
            self.keys,
            change(self.values),
            change(self.lengths),
            of(self.offsets),
            change(self.inverse_lookup),
            self.unique_stride,
            of(self.weights),
            of(self.starts),
        )


def _gather(tensor: KeyedJaggedTensor | InverseKeyedJaggedTensor, starts: Tensor, rows: Tensor) -> KeyedJaggedTensor:
    """Gather rows of the lists that start at `starts` to a plain tensor without gaps."""
    if tensor.values.device.type != "cpu":
        return _gather_on_device(tensor, starts, rows)
    num_keys, num_rows = len(tensor.keys), rows.numel()
    lengths = torch.empty(num_keys * num_rows, dtype=torch.int32)
    offsets = torch.empty(num_keys * num_rows + 1, dtype=torch.int64)
    values = torch.empty(int(count_selected(tensor.lengths.numpy(), num_keys, rows.numpy())), dtype=torch.int64)
    weights = torch.empty(0 if tensor.weights is None else values.numel(), dtype=torch.float32)
    select_rows(
        tensor.values.numpy(),
        np.empty(0, np.float32) if tensor.weights is None else tensor.weights.numpy(),
        starts.numpy(),
        tensor.lengths.numpy(),
        num_keys,
        rows.numpy(),
        values.numpy(),
        weights.numpy(),
        lengths.numpy(),
        offsets.numpy(),
    )
    has_weights = tensor.weights is not None
    return KeyedJaggedTensor(tensor.keys, values, lengths, offsets, num_rows, weights if has_weights else None)


def _gather_on_device(
    tensor: KeyedJaggedTensor | InverseKeyedJaggedTensor, starts: Tensor, rows: Tensor
) -> KeyedJaggedTensor:
    """`_gather` with torch operations, for tensors that are not on the CPU."""
    num_keys = len(tensor.keys)
    lengths = tensor.lengths.view(num_keys, -1).index_select(1, rows).reshape(-1)
    begin = starts.view(num_keys, -1).index_select(1, rows).reshape(-1)
    offsets = torch.zeros(lengths.numel() + 1, dtype=torch.int64, device=lengths.device)
    torch.cumsum(lengths, 0, out=offsets[1:])
    total = int(offsets[-1])
    places = torch.repeat_interleave(begin - offsets[:-1], lengths, output_size=total)
    places += torch.arange(total, device=places.device)
    weights = None if tensor.weights is None else tensor.weights[places]
    return KeyedJaggedTensor(tensor.keys, tensor.values[places], lengths, offsets, rows.numel(), weights)


def _cumulated(counts: Sequence[int]) -> list[int]:
    return [0, *np.cumsum(counts).tolist()]


def _check_alike(parts: Sequence[InverseKeyedJaggedTensor]) -> None:
    if not parts:
        raise ValueError("given no parts to concatenate, expected at least one")
    for part in parts[1:]:
        if part.keys != parts[0].keys:
            raise ValueError(
                f"parts have keys {shorten_list(parts[0].keys)} and {shorten_list(part.keys)}, expected the same"
            )
        if (part.weights is None) != (parts[0].weights is None):
            raise ValueError(f"some parts of {shorten_list(part.keys)} have weights and some have none")
