"""A plan's features split by the rows they are computed for: unique rows of a group, of several, or all rows.

A feature whose columns all lie in one group is computed once per unique row of that group. One that mixes groups is
computed once per combination of their unique rows that occurs, and one that also reads a plain column, or the row's id,
for every row; only the columns that such a feature reads are expanded, and only so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.features.buffers import BufferPool
from headrace.features.kernels.comparing import number_combinations
from headrace.features.kernels.gathering import gather_sources, gathered_bytes
from headrace.features.operator import Kind
from headrace.features.operators import OneHot
from headrace.features.part import Part
from headrace.features.spec import FeatureSpec

__all__ = ["Domain", "GroupRows", "combine", "dense_places", "split"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class GroupRows:
    """The unique rows of a group that a batch has.

    Attributes:
        rows: int64 [U], where they lie in the group's columns.
        inverse: int32 [B], which of them each row of the batch has.
    """

    rows: Ints
    inverse: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Domain:
    """Features that are computed for the same rows.

    Attributes:
        part: To compute them.
        groups: Numbers of the groups whose unique rows, or combinations of them, these are; empty for all rows.
        sources: int64 [C], the plan's number of each column of the part.
        which: int64 [C], the group of each column, -1 for columns that have the rows of the domain as they are.
        runs: int64 [R, 3], where the part's dense columns belong, as `expand_rows` wants it.
    """

    part: Part
    groups: tuple[int, ...]
    sources: Ints
    which: Ints
    runs: Ints

    def table(self, sources: Ints, rows: Ints, arena: list[NDArray[np.uint8]]) -> Ints:
        """Table of sources for the part.

        Args:
            sources: int64 [S, WIDTH], all of the plan's.
            rows: int64 [G, U], for each group of the plan where the rows of this domain lie.
            arena: Memory that must outlive the use of the table is added to it.
        """
        own = np.ascontiguousarray(sources[self.sources])
        if (self.which >= 0).any():
            arena.append(np.empty(int(gathered_bytes(own, self.which, rows)), np.uint8))
            gather_sources(own, self.which, rows, arena[-1])
        return self.part.load(own)


def split(
    specs: Sequence[FeatureSpec],
    kinds: Mapping[str, Kind],
    names: Sequence[str],
    homes: Mapping[str, int],
    buffers: BufferPool,
    *,
    stored: bool,
) -> tuple[Domain, ...]:
    """Split features by the rows they are computed for.

    Args:
        specs: The features.
        kinds: What each column holds.
        names: The plan's columns in the order of their numbers.
        homes: The group of each column that is in one.
        buffers: Memory for results.
        stored: Columns of groups hold unique rows only, as in group columns; else those of every row.
    """
    by_groups: dict[tuple[int, ...], list[FeatureSpec]] = {}
    for spec in specs:
        by_groups.setdefault(_groups_of(spec, homes), []).append(spec)
    places = dense_places(specs)
    return tuple(
        _domain(groups, members, kinds, names, homes, buffers, places, stored=stored)
        for groups, members in sorted(by_groups.items())
    )


def combine(groups: Sequence[GroupRows]) -> tuple[list[Ints], NDArray[np.int32]]:
    """Combinations of unique rows that neighbouring rows of a batch share.

    Returns:
        For each group where its rows lie, int64 [U] each, and int32 [B], the combination of each row of the batch.
    """
    if len(groups) == 1:
        return [groups[0].rows], groups[0].inverse
    inverses = np.stack([group.inverse for group in groups])
    inverse, first_rows = np.empty_like(groups[0].inverse), np.empty(inverses.shape[1], np.int64)
    count = number_combinations(inverses, inverse, first_rows)
    return [group.rows[group.inverse[first_rows[:count]]] for group in groups], inverse


def dense_places(specs: Sequence[FeatureSpec]) -> dict[str, int]:
    """First column of each dense feature in `Batch.dense`."""
    places, at = {}, 0
    for spec in specs:
        if spec.section == "dense":
            places[spec.name] = at
            at += _width(spec)
    return places


def _width(spec: FeatureSpec) -> int:
    last = spec.operators[-1] if spec.operators else None
    return last.num_columns if isinstance(last, OneHot) else 1


def _groups_of(spec: FeatureSpec, homes: Mapping[str, int]) -> tuple[int, ...]:
    """The groups that a feature's rows are combinations of; empty if it must be computed for all rows."""
    if any(operator.reads_row_ids for operator in spec.operators):
        return ()
    columns = [*spec.sources, *([spec.weights] if spec.weights is not None else [])]
    if any(name not in homes for name in columns):
        return ()
    return tuple(sorted({homes[name] for name in columns}))


def _domain(
    groups: tuple[int, ...],
    specs: Sequence[FeatureSpec],
    kinds: Mapping[str, Kind],
    names: Sequence[str],
    homes: Mapping[str, int],
    buffers: BufferPool,
    places: Mapping[str, int],
    *,
    stored: bool,
) -> Domain:
    part = Part(specs, kinds, buffers, None if groups else places)
    gathered = stored or bool(groups)
    which = [homes.get(name, -1) if gathered else -1 for name in part.columns]
    sources = [names.index(name) for name in part.columns]
    own = dense_places(specs)
    widths = {spec.name: _width(spec) for spec in specs}
    runs: list[list[int]] = []
    for name, at in own.items():
        if runs and runs[-1][0] + runs[-1][2] == at and runs[-1][1] + runs[-1][2] == places[name]:
            runs[-1][2] += widths[name]
        else:
            runs.append([at, places[name], widths[name]])
    return Domain(
        part,
        groups,
        np.array(sources, np.int64),
        np.array(which, np.int64),
        np.array(runs, np.int64).reshape(-1, 3),
    )
