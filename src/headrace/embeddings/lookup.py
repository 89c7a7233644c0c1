"""`Lookup`: unique keys of some features of a batch and their rows, on the way."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headrace.embeddings.keys import Keys, SpaceLayout, UniqueIds
from headrace.embeddings.ops.jagged_ids import BagGroup, JaggedIds

__all__ = ["FeatureSet", "Lookup"]

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Some features of a module, numbered on their own; in the order of the module.

    Attributes:
        names: F of them.
        positions: int64 [F], their numbers in the module.
        layout: Which of them are in which space.
        poolings: int64 [F].
    """

    names: tuple[str, ...]
    positions: Int64s
    layout: SpaceLayout
    poolings: Int64s

    def number(self, name: str) -> int:
        """The number of a feature in this set.

        Raises:
            KeyError: It is not in the set.
        """
        if name not in self.names:
            raise KeyError(f"feature {name}: not in this lookup, which has: {', '.join(self.names)}")
        return self.names.index(name)


@dataclass(eq=False)
class Lookup:
    """What one forward pass needs of the embeddings of some features, and nothing of the model.

    Attributes:
        features: Which they are.
        ids: Their ids in the batch.
        unique: The unique keys of the ids.
        reading: The rows float32 [U, dim], an array, or a tensor on a device; `reading.done()` says whether they are
            here.
        requires_grad: Whether gradients are to be collected.
        gradient: Of the unique keys, duplicates merged, float32 [U, dim]; None before a backward.
        device: Where models compute; None for the host, without torch's own operations.
    """

    features: FeatureSet
    ids: JaggedIds
    unique: UniqueIds
    reading: Future[Any]
    requires_grad: bool
    gradient: Float32s | None = None
    device: torch.device | None = None
    _leaf: Tensor | None = None

    @property
    def stride(self) -> int:
        """Rows B of the batch."""
        return self.ids.stride

    @property
    def keys(self) -> Keys:
        """The unique keys."""
        return self.unique.keys

    def rows(self) -> Float32s:
        """The rows of the unique keys, float32 [U, dim]; waits until they are here."""
        rows: Float32s = self.reading.result()
        return rows

    def group_of(self, feature_name: str) -> BagGroup:
        """The group in which a feature is."""
        number = self.features.number(feature_name)
        return next(group for group in self.ids.groups if number in group.features)

    def inverse_lookup(self, feature_name: str) -> Tensor | None:
        """Which unique row each row of the batch has in a feature, int32 [B]; None if every row has its own."""
        inverse = self.group_of(feature_name).inverse
        return None if inverse is None else torch.from_numpy(inverse)

    def leaf(self) -> Tensor:
        """Rows on a device as a leaf of the autograd graph, float32 [U, dim]; waits until they are here."""
        if self._leaf is None:
            rows = self.reading.result()
            rows = rows if isinstance(rows, Tensor) else torch.from_numpy(rows)
            self._leaf = rows.to(self.device).requires_grad_(self.requires_grad)
        return self._leaf

    @property
    def grad(self) -> Any:
        """The gradients of the unique keys so far, an array, or a tensor on the device; None without a backward."""
        return self.gradient if self._leaf is None else self._leaf.grad

    def add_gradient(self, gradient: Float32s) -> None:
        """What one operation's backward gives, float32 [U, dim]; the array is the lookup's from now on."""
        if self.gradient is None:
            self.gradient = gradient
        else:
            self.gradient += gradient
