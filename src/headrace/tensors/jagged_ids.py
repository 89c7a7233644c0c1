"""The id lists of some features of a batch as flat arrays, for plain and deduplicated groups.

Legend: N ids, B rows, F features, U unique rows, D dimension; a *bag* is the id list of one feature and one row, or of
one feature and one unique row of an inverse-keyed group: it is pooled once, regardless of how many rows share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.errors import ConfigError
from headrace.tensors.inverse_keyed_jagged import InverseKeyedJaggedTensor
from headrace.tensors.keyed_jagged import KeyedJaggedTensor

__all__ = ["BagGroup", "Group", "JaggedIds", "collect_ids"]

Group = KeyedJaggedTensor | InverseKeyedJaggedTensor
"""An element of `Batch.sparse`."""

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]

Scalar = TypeVar("Scalar", bound=np.generic)

NO_WEIGHTS = np.empty(0, dtype=np.float32)
NO_COUNTS = np.empty(0, dtype=np.int32)


@dataclass(frozen=True, eq=False)
class BagGroup:
    """Features that are pooled together.

    Attributes:
        features: int64, numbers of the features in the `JaggedIds`.
        num_bags: Bags per feature: B, or U if there is an `inverse`.
        inverse: int32 [B], unique row of each row of the batch; None for a plain group.
    """

    features: Int64s
    num_bags: int
    inverse: Int32s | None


@dataclass(frozen=True, eq=False)
class JaggedIds:
    """The ids of some features, which are numbered in the requested order.

    Attributes:
        values: int64 [N], the ids; some may not belong to any bag.
        weights: float32 [N], or [0] for all ones.
        multiplicities: int32 [N], number of batch rows with the id at each position; [0] for all ones.
        firsts: int64 [bags], start of each bag in `values`; bags of inverse-keyed groups may overlap.
        lasts: int64 [bags], end of each bag.
        bag_starts: int64 [F], first bag of each feature, followed by its others.
        num_bags: int64 [F], number of bags of each feature.
        value_firsts: int64 [F], start of the ids of each feature.
        value_lasts: int64 [F], end of the ids of each feature; features do not share positions.
        groups: Groups of features that share rows.
        stride: Number of rows B.
        num_bytes: Bytes of the arrays that do not share memory with the batch.
    """

    values: Int64s
    weights: Float32s
    multiplicities: Int32s
    firsts: Int64s
    lasts: Int64s
    bag_starts: Int64s
    num_bags: Int64s
    value_firsts: Int64s
    value_lasts: Int64s
    groups: tuple[BagGroup, ...]
    stride: int
    num_bytes: int = 0

    def place_of(self, position: int, feature: int) -> int:
        """The first batch row with the id at a position of a feature's values."""
        group = next(group for group in self.groups if feature in group.features)
        bags = slice(int(self.bag_starts[feature]), int(self.bag_starts[feature]) + group.num_bags)
        bag = int(np.argmax((self.firsts[bags] <= position) & (position < self.lasts[bags])))
        return bag if group.inverse is None else int(np.argmax(group.inverse == bag))

    def take(self, rows: Int64s) -> JaggedIds:
        """The ids of some rows int64 [n] of the batch, at the same positions; only bags are copied.

        Unique rows of an inverse-keyed group that are in none of these rows are empty.
        """
        firsts, lasts, groups = [], [], []
        bag_starts, num_bags = np.empty((2, len(self.bag_starts)), dtype=np.int64)
        end = 0
        for group in self.groups:
            where = np.arange(group.num_bags) if group.inverse is not None else rows
            bags = self.bag_starts[group.features][:, None] + where
            group_firsts, group_lasts = self.firsts[bags], self.lasts[bags]
            inverse = None if group.inverse is None else group.inverse[rows]
            if inverse is not None:
                is_unused = np.bincount(inverse, minlength=group.num_bags) == 0
                group_lasts[:, is_unused] = group_firsts[:, is_unused]
            bag_starts[group.features] = end + np.arange(len(group.features)) * len(where)
            num_bags[group.features] = len(where)
            end += bags.size
            firsts.append(group_firsts.reshape(-1))
            lasts.append(group_lasts.reshape(-1))
            groups.append(BagGroup(group.features, len(where), inverse))
        return replace(
            self,
            firsts=_concat(firsts),
            lasts=_concat(lasts),
            bag_starts=bag_starts,
            num_bags=num_bags,
            groups=tuple(groups),
            stride=len(rows),
            num_bytes=16 * end,
        )


@dataclass(frozen=True, eq=False)
class _Part:
    """The requested columns of one group, before concatenation."""

    values: Int64s
    weights: Float32s | None
    multiplicities: Int32s | None
    firsts: Int64s
    lasts: Int64s
    num_bags: int
    inverse: Int32s | None
    value_firsts: Int64s
    value_lasts: Int64s


def collect_ids(sparse: Sequence[Group], feature_names: Sequence[str]) -> JaggedIds:
    """Collect the ids of some features of a batch. Arrays are shared with the batch if a single group has all features.

    Raises:
        ConfigError: A feature is not in the batch.
    """
    places = {key: (g, column) for g, group in enumerate(sparse) for column, key in enumerate(group.keys)}
    missing = [name for name in feature_names if name not in places]
    if missing:
        raise ConfigError(f"feature {missing[0]}: not in the batch, which has: {', '.join(places)}")
    found = np.array([places[name] for name in feature_names], dtype=np.int64)
    numbers = np.unique(found[:, 0])
    members = [np.flatnonzero(found[:, 0] == number) for number in numbers]
    columns = [found[features, 1] for features in members]
    parts = [_part(sparse[number], wanted) for number, wanted in zip(numbers, columns, strict=True)]
    shifts = np.cumsum([0, *[len(part.values) for part in parts]])
    bags = np.cumsum([0, *[len(part.firsts) for part in parts]])
    num_features = len(feature_names)
    bag_starts, num_bags, value_firsts, value_lasts = np.empty((4, num_features), dtype=np.int64)
    for part, features, wanted, shift, bag in zip(parts, members, columns, shifts, bags, strict=False):
        bag_starts[features], num_bags[features] = bag + wanted * part.num_bags, part.num_bags
        value_firsts[features], value_lasts[features] = part.value_firsts + shift, part.value_lasts + shift
    arrays = (
        _concat([part.values for part in parts]),
        _filled([part.weights for part in parts], parts, NO_WEIGHTS),
        _filled([part.multiplicities for part in parts], parts, NO_COUNTS),
        _concat([part.firsts + shift if shift else part.firsts for part, shift in zip(parts, shifts, strict=False)]),
        _concat([part.lasts + shift if shift else part.lasts for part, shift in zip(parts, shifts, strict=False)]),
    )
    return JaggedIds(
        *arrays,
        bag_starts,
        num_bags,
        value_firsts,
        value_lasts,
        tuple(BagGroup(features, part.num_bags, part.inverse) for features, part in zip(members, parts, strict=True)),
        int(sparse[numbers[0]].stride),
        sum(array.nbytes for array in arrays if not _is_of(sparse, array)),
    )


def _part(group: Group, columns: Int64s) -> _Part:
    if isinstance(group, InverseKeyedJaggedTensor):
        return _inverse_part(group, columns)
    offsets, stride = group.offsets.numpy(), group.stride
    weights = None if group.weights is None else group.weights.numpy()
    bounds = offsets[columns * stride], offsets[(columns + 1) * stride]
    return _Part(group.values.numpy(), weights, None, offsets[:-1], offsets[1:], stride, None, *bounds)


def _inverse_part(group: InverseKeyedJaggedTensor, columns: Int64s) -> _Part:
    if group.starts is not None:
        bounds = _used_ranges(group, columns)
        order = np.argsort(bounds[0])
        if (bounds[0][order][1:] < bounds[1][order][:-1]).any():  # features share positions: separate their lists
            return _inverse_part(InverseKeyedJaggedTensor.of_unique(group.unique, group.inverse_lookup), columns)
        firsts = group.starts.numpy()
        lasts = firsts + group.lengths.numpy()
    else:
        assert group.offsets is not None, "an IKJT has offsets or starts"
        offsets, unique = group.offsets.numpy(), group.unique_stride
        bounds = offsets[columns * unique], offsets[(columns + 1) * unique]
        firsts, lasts = offsets[:-1], offsets[1:]
    inverse = np.ascontiguousarray(group.inverse_lookup.numpy(), dtype=np.int32)
    times = np.bincount(inverse, minlength=group.unique_stride).astype(np.int32)
    if not times.all():  # unused unique rows count as empty, because their ids do not occur
        lasts = np.where(np.tile(times == 0, len(group.keys)), firsts, lasts)
    multiplicities = np.zeros(len(group.values) + 1, dtype=np.int32)
    _count_rows(firsts, lasts, columns, times, multiplicities)
    weights = None if group.weights is None else group.weights.numpy()
    return _Part(
        group.values.numpy(),
        weights,
        multiplicities[:-1],
        firsts,
        lasts,
        group.unique_stride,
        inverse,
        *bounds,
    )


def _used_ranges(group: InverseKeyedJaggedTensor, columns: Int64s) -> tuple[Int64s, Int64s]:
    """The range of each requested column in a buffer of overlapping lists."""
    assert group.starts is not None, "only for lists with starts"
    starts = group.starts.numpy().reshape(len(group.keys), -1)[columns]
    lengths = group.lengths.numpy().reshape(len(group.keys), -1)[columns].astype(np.int64)
    size = len(group.values)
    low = np.where(lengths > 0, starts, size).min(axis=1, initial=size)
    return low, np.maximum(np.where(lengths > 0, starts + lengths, 0).max(axis=1, initial=0), low)


@kernel()
def _count_rows(firsts: Int64s, lasts: Int64s, columns: Int64s, times: Int32s, out: Int32s) -> None:
    """out[i] = number of rows with position i, from differences at both ends of each list and a running sum."""
    num_unique = len(times)
    for column in columns:
        for u in range(num_unique):
            out[firsts[column * num_unique + u]] += times[u]
            out[lasts[column * num_unique + u]] -= times[u]
    running = np.int32(0)
    for i in range(len(out)):
        running += out[i]
        out[i] = running


def _is_of(sparse: Sequence[Group], array: npt.NDArray[Any]) -> bool:
    """Whether an array shares memory with the batch."""
    tensors = [t for group in sparse for t in (group.values, group.weights, group.offsets) if t is not None]
    tensors += [
        group.starts for group in sparse if isinstance(group, InverseKeyedJaggedTensor) and group.starts is not None
    ]
    return any(np.may_share_memory(array, tensor.numpy()) for tensor in tensors)


def _concat(arrays: Sequence[npt.NDArray[Scalar]]) -> npt.NDArray[Scalar]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _filled(
    arrays: Sequence[npt.NDArray[Scalar] | None], parts: Sequence[_Part], absent: npt.NDArray[Scalar]
) -> npt.NDArray[Scalar]:
    """Concatenate arrays, with ones for parts without an array; `absent` if no part has one."""
    if all(array is None for array in arrays):
        return absent
    filled = [
        np.ones(len(part.values), dtype=absent.dtype) if array is None else array
        for array, part in zip(arrays, parts, strict=True)
    ]
    return _concat(filled)
