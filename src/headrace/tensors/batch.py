"""`Batch`: the input of a training step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from headrace.tensors.inverse_keyed_jagged import InverseKeyedJaggedTensor
from headrace.tensors.jagged_ids import Group
from headrace.tensors.keys import BatchKeys, KeyFinder

__all__ = ["Batch"]

MAX_GROUPS_SHOWN = 3


@dataclass(frozen=True, eq=False)
class Batch:
    """Tensors of B rows, ready for a training step, with the unique keys of their ids.

    Unique keys are computed once, normally by pipeline workers (`headrace.embeddings.KeyedPlan`), and stay with the
    batch. Models get them with `keys_of`, which computes and caches them if the batch does not have them.

    Attributes:
        dense: float32 [B, D], columns in the order of the feature plan.
        sparse: Groups of id-list features. Features that do not repeat from row to row share one `KeyedJaggedTensor`;
            each group of features that repeat together is a separate `InverseKeyedJaggedTensor`.
        labels: float32 [B, L], columns in the order of the schema.
        weights: float32 [B] example weights, or None for all ones.
        row_ids: int64 [B], ids of the log rows, with which exactly-once processing is verified.
        unique_keys: Unique keys computed so far, by finder; in several parts if features were computed in groups.
    """

    dense: Tensor
    sparse: tuple[Group, ...]
    labels: Tensor
    row_ids: Tensor
    weights: Tensor | None = None
    unique_keys: dict[KeyFinder, tuple[BatchKeys, ...]] = field(default_factory=dict)
    _keyed: tuple[Group, ...] | None = field(default=None, kw_only=True)  # the groups to which `unique_keys` belong

    def __post_init__(self) -> None:
        if self._keyed is not None and self._keyed is not self.sparse:
            object.__setattr__(self, "unique_keys", {})  # after `dataclasses.replace` with other ids
        object.__setattr__(self, "_keyed", self.sparse)

    def __len__(self) -> int:
        return int(self.row_ids.numel())

    def __repr__(self) -> str:
        plain = {"dense": self.dense, "labels": self.labels, "row_ids": self.row_ids, "weights": self.weights}
        parts = [f"{name}={_shape(tensor)}" for name, tensor in plain.items() if tensor is not None]
        shown = [repr(group) for group in self.sparse[:MAX_GROUPS_SHOWN]]
        more = len(self.sparse) - len(shown)
        parts.insert(1, f"sparse=({', '.join(shown)}{f', and {more} more groups' if more else ''})")
        return f"Batch({', '.join(parts)})"

    @property
    def num_bytes(self) -> int:
        """Bytes held by all tensors of the batch and its unique keys."""
        plain = [self.dense, self.labels, self.row_ids] + ([] if self.weights is None else [self.weights])
        num_bytes = sum(tensor.nbytes for tensor in plain) + sum(group.num_bytes for group in self.sparse)
        return num_bytes + sum(part.num_bytes for parts in self.unique_keys.values() for part in parts)

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of all sparse features, group by group."""
        return tuple(key for group in self.sparse for key in group.keys)

    def keys_of(self, finder: KeyFinder) -> tuple[BatchKeys, ...]:
        """The unique keys of all features of a finder, computed and cached if needed.

        Raises:
            ConfigError: The batch lacks a feature.
            DataError: An id is out of range of its table.
        """
        parts = self.unique_keys.get(finder, ())
        if sum(len(part.feature_names) for part in parts) < len(finder.feature_names):
            parts = self.unique_keys[finder] = (finder.find(self.sparse, finder.feature_names),)
        return parts

    def with_keys(self, finders: Iterable[KeyFinder]) -> Batch:
        """A copy of the batch with unique keys, for each finder's features that the batch has.

        Raises:
            DataError: An id is out of range of its table.
        """
        return replace(self, unique_keys=_find(finders, self.sparse))

    @classmethod
    def join(cls, parts: Sequence[Batch]) -> Batch:
        """Join batches with different features of the same rows into one.

        Everything except ids and their keys is taken from the first.
        """
        keys: dict[KeyFinder, tuple[BatchKeys, ...]] = {}
        for part in parts:
            for finder, found in part.unique_keys.items():
                keys[finder] = keys.get(finder, ()) + found
        sparse = tuple(group for part in parts for group in part.sparse)
        return replace(parts[0], sparse=sparse, unique_keys=keys, _keyed=sparse)

    def expand(self) -> Batch:
        """A copy of the batch with every group as a plain `KeyedJaggedTensor`, as without deduplication."""
        return self._with_sparse(
            tuple(g.expand() if isinstance(g, InverseKeyedJaggedTensor) else g for g in self.sparse)
        )

    def slice(self, start: int, stop: int) -> Batch:
        """A batch of rows `start` to `stop`."""
        return self.take(torch.arange(len(self))[start:stop])

    def take(self, rows: Tensor) -> Batch:
        """A batch of the given rows, int64 [n] on the host, in any order."""
        where = rows.to(self.dense.device)
        return replace(
            self._with_sparse(tuple(_take(group, where) for group in self.sparse)),
            dense=self.dense[where],
            labels=self.labels[where],
            row_ids=self.row_ids[rows],
            weights=None if self.weights is None else self.weights[where],
        )

    def micro_batches(self, parts: Sequence[Tensor]) -> list[Batch]:
        """Split into batches that are trained as one, with the unique keys of this batch, see `BatchKeys.split`.

        Args:
            parts: For each micro-batch, its rows int64 [n] on the host; each row is in one of them.
        """
        keys = {
            finder: [found.split([rows.numpy() for rows in parts]) for found in every]
            for finder, every in self.unique_keys.items()
        }
        batches = []
        for number, rows in enumerate(parts):
            sparse = tuple(_view(group, rows) for group in self.sparse)
            of_part = {finder: tuple(found[number] for found in every) for finder, every in keys.items()}
            batches.append(
                replace(
                    self,
                    dense=self.dense[rows],
                    sparse=sparse,
                    labels=self.labels[rows],
                    row_ids=self.row_ids[rows],
                    weights=None if self.weights is None else self.weights[rows],
                    unique_keys=of_part,
                    _keyed=sparse,
                )
            )
        return batches

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Copy the batch to a device; row ids and unique keys stay on the host."""
        return self._map(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Copy the batch to page-locked host memory; row ids and unique keys are not copied."""
        return self._map(lambda part: part.pin_memory())

    def _map(self, change: Callable[[Any], Any]) -> Batch:
        sparse = tuple(change(group) for group in self.sparse)
        return replace(
            self,
            dense=change(self.dense),
            sparse=sparse,
            _keyed=sparse,
            labels=change(self.labels),
            weights=None if self.weights is None else change(self.weights),
        )

    def _with_sparse(self, sparse: tuple[Group, ...]) -> Batch:
        """A copy of the batch with other ids and their unique keys."""
        return replace(self, sparse=sparse, unique_keys=_find(self.unique_keys, sparse), _keyed=sparse)


def _take(group: Group, rows: Tensor) -> Group:
    if isinstance(group, InverseKeyedJaggedTensor):
        return replace(group, inverse_lookup=group.inverse_lookup[rows])
    return InverseKeyedJaggedTensor.of_unique(group, rows).expand()


def _view(group: Group, rows: Tensor) -> Group:
    """Some rows of a group, without copying its ids."""
    if isinstance(group, InverseKeyedJaggedTensor):
        return replace(group, inverse_lookup=group.inverse_lookup[rows])
    return InverseKeyedJaggedTensor.of_unique(group, rows.to(torch.int32))


def _find(finders: Iterable[KeyFinder], sparse: tuple[Group, ...]) -> dict[KeyFinder, tuple[BatchKeys, ...]]:
    there = {key for group in sparse for key in group.keys}
    found: dict[KeyFinder, tuple[BatchKeys, ...]] = {}
    for finder in finders:
        if names := tuple(name for name in finder.feature_names if name in there):
            found[finder] = (finder.find(sparse, names),)
    return found


def _shape(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}[{', '.join(map(str, tensor.shape))}]"
