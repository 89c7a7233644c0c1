"""`Lookup`: the unique keys of a batch in one module, and a pending read of their rows."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headrace.embeddings.ops.unique import TableLayout
from headrace.tensors import BatchKeys
from headrace.tensors.jagged_ids import BagGroup

__all__ = ["FeatureSet", "Lookup", "LookupPart"]

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """A subset of a module's features, in the module's order.

    Attributes:
        names: Names of the F features.
        positions: int64 [F], position of each feature in the module.
        layout: Which features are in which table.
        poolings: int64 [F], pooling of each feature.
    """

    names: tuple[str, ...]
    positions: Int64s
    layout: TableLayout
    poolings: Int64s


@dataclass(eq=False)
class LookupPart:
    """The features of a lookup whose keys were found together.

    Attributes:
        features: The features.
        found: Ids and unique keys of the features, owned by the batch.
        reading: Future of the rows, float32 [U, dim]: an array, or a tensor on a device.
        requires_grad: Whether gradients are collected.
        gradient: Gradients of the unique keys with duplicates merged, float32 [U, dim]; None before a backward pass.
        device: Device that the model computes on; None for the CPU kernels of headrace.
    """

    features: FeatureSet
    found: BatchKeys
    reading: Future[Any]
    requires_grad: bool
    gradient: Float32s | None = None
    device: torch.device | None = None
    _leaf: Tensor | None = None

    def rows(self) -> Float32s:
        """The rows of the unique keys, float32 [U, dim]; waits for the read."""
        rows: Float32s = self.reading.result()
        return rows

    def leaf(self) -> Tensor:
        """Rows on a device as a leaf of the autograd graph, float32 [U, dim]; waits for the read."""
        if self._leaf is None:
            rows = self.reading.result()
            rows = rows if isinstance(rows, Tensor) else torch.from_numpy(rows)
            self._leaf = rows.to(self.device).requires_grad_(self.requires_grad)
        return self._leaf

    @property
    def grad(self) -> Any:
        """The gradients of the unique keys so far: an array, or a tensor on the device; None before a backward pass."""
        return self.gradient if self._leaf is None else self._leaf.grad

    def add_gradient(self, gradient: Float32s) -> None:
        """Add the gradient of one operation, float32 [U, dim], and take ownership of the array."""
        if self.gradient is None:
            self.gradient = gradient
        else:
            self.gradient += gradient

    def groups(self, names: Sequence[str] | None = None) -> list[BagGroup]:
        """Groups of features that are pooled together, by feature number in this part; `names` selects features."""
        if names is None:
            return list(self.found.ids.groups)
        return _chosen_groups(self.found.ids.groups, self._numbers(names))

    def layout(self, names: Sequence[str] | None = None) -> TableLayout:
        """Which features are in which table; `names` selects features."""
        return self.features.layout if names is None else _chosen_layout(self.features.layout, self._numbers(names))

    def _numbers(self, names: Sequence[str]) -> tuple[int, ...]:
        return tuple(number for number, name in enumerate(self.features.names) if name in names)


def _chosen_groups(groups: Sequence[BagGroup], numbers: tuple[int, ...]) -> list[BagGroup]:
    chosen = [BagGroup(g.features[np.isin(g.features, numbers)], g.num_bags, g.inverse) for g in groups]
    return [group for group in chosen if len(group.features)]


@lru_cache(maxsize=256)
def _chosen_layout(layout: TableLayout, numbers: tuple[int, ...]) -> TableLayout:
    return layout.only(numbers)


@dataclass(eq=False)
class Lookup:
    """The unique keys of a batch in one module, and their rows, for one forward pass.

    A module looks up all its features at once, so that each key is read once and has one gradient, however a model uses
    the features.

    Attributes:
        parts: Parts of the lookup. Each feature of the module is in one part, and no two parts share a key.
    """

    parts: tuple[LookupPart, ...]

    @property
    def stride(self) -> int:
        """Number of rows B in the batch."""
        return self.parts[0].found.ids.stride

    def part_of(self, feature_name: str) -> tuple[LookupPart, int]:
        """The part that contains a feature, and the feature's number in it.

        Raises:
            KeyError: The module has no such feature.
        """
        for part in self.parts:
            if feature_name in part.features.names:
                return part, part.features.names.index(feature_name)
        names = [name for part in self.parts for name in part.features.names]
        raise KeyError(f"feature {feature_name}: not in this lookup, which has: {', '.join(names)}")

    def inverse_lookup(self, feature_name: str) -> Tensor | None:
        """The unique row of each row of the batch in a feature, int32 [B]; None if every row is unique."""
        part, number = self.part_of(feature_name)
        inverse = next(group for group in part.found.ids.groups if number in group.features).inverse
        return None if inverse is None else torch.from_numpy(inverse)
