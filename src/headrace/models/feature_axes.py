"""Which entries of dense parameters belong to which features, so that a trained model can go on with other features.

A model's config names the axes of parameters that depend on the features (`ModelConfig.feature_axes`). If the features
change, each entry keeps its value, wherever it is now. New inputs get the weight zero, so that nothing after them
changes, and learn from there; new outputs, which only new inputs read, keep their initial values::

    weight [2, N]     price  age                      price  size
    hidden 0            .3   -.1          ->            .3     0
    hidden 1            .7    .2                        .7     0
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Array",
    "FeatureAxes",
    "FeatureAxis",
    "carry_over",
    "embedding_entries",
    "inputs",
    "new_inputs",
    "num_kept",
    "outputs",
]

Array = NDArray[Any]


@dataclass(frozen=True)
class FeatureAxis:
    """An axis of a parameter whose entries belong to features.

    Attributes:
        axis: Number of the axis.
        entries: What each entry belongs to, in order and without duplicates: the name of a dense feature, (feature,
            number) of an embedding, a pair of features, or anything else that is hashable.
        is_input: Whether the entries are inputs of the parameter, such as the columns of a linear layer's weight, and
            not outputs.
    """

    axis: int
    entries: Sequence[Hashable]
    is_input: bool = True


FeatureAxes = Mapping[str, Sequence[FeatureAxis]]
"""The axes of parameters that depend on features, by the parameter's name in the model."""


def inputs(entries: Sequence[Hashable]) -> tuple[FeatureAxis, ...]:
    """The input axis of a linear layer's weight."""
    return (FeatureAxis(1, entries),)


def outputs(entries: Sequence[Hashable]) -> tuple[FeatureAxis, ...]:
    """The output axis of a linear layer's weight or bias."""
    return (FeatureAxis(0, entries, is_input=False),)


def embedding_entries(sparse_keys: Sequence[str], embedding_dim: int) -> list[Hashable]:
    """Entries of the embeddings [B, F, D] of some features, flattened to [B, F D]."""
    return [(key, d) for key in sparse_keys for d in range(embedding_dim)]


def carry_over(saved: Array, initial: Array, was: Sequence[FeatureAxis], now: Sequence[FeatureAxis]) -> Array:
    """An array for other features: saved values where an entry existed before, initial values elsewhere.

    Args:
        saved: A parameter, or an array of its shape such as a moment of its optimizer.
        initial: The same array of a new model with the present features.
        was: Axes of `saved` that depend on features.
        now: The same axes of `initial`, in the same order.
    """
    origins = _origins(initial.shape, was, now)
    kept = [np.flatnonzero(origin >= 0) for origin in origins]
    result = initial.copy()
    result[np.ix_(*kept)] = saved[np.ix_(*(origin[places] for origin, places in zip(origins, kept, strict=True)))]
    return result


def new_inputs(shape: Sequence[int], was: Sequence[FeatureAxis], now: Sequence[FeatureAxis]) -> NDArray[np.bool_]:
    """Which elements of an array of this shape belong to an input that did not exist before."""
    found = np.zeros(shape, dtype=np.bool_)
    for axis, origin in enumerate(_origins(shape, was, now)):
        if any(each.axis == axis and each.is_input for each in now):
            np.moveaxis(found, axis, 0)[origin < 0] = True
    return found


def num_kept(was: FeatureAxis, now: FeatureAxis) -> int:
    """Number of entries of an axis that existed before."""
    return len(set(was.entries) & set(now.entries))


def _origins(shape: Sequence[int], was: Sequence[FeatureAxis], now: Sequence[FeatureAxis]) -> list[NDArray[np.int64]]:
    """For each axis, where each entry was before; -1 for a new one."""
    origins = [np.arange(size) for size in shape]
    for before, after in zip(was, now, strict=True):
        places = {entry: place for place, entry in enumerate(before.entries)}
        origins[after.axis] = np.array([places.get(entry, -1) for entry in after.entries], dtype=np.int64)
    return origins
