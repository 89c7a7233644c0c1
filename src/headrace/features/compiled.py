"""A feature plan compiled for record batches of one Arrow schema: all that a pass over a batch needs to look up.

Features are split into *domains* by the rows they are computed for. A feature whose columns all lie in one group is
computed once per unique row of that group. One that mixes groups is computed once per combination of their unique rows
that occurs, and one that also reads a plain column, or the row's id, for every row; only the columns that such a
feature reads are expanded, and only so far. Without groups there is one domain: all features, for all rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.features.binding import Binding, bind
from headrace.features.grouping import Grouping
from headrace.features.operator import Kind
from headrace.features.operators import OneHot
from headrace.features.spec import FeatureSpec, column_kinds
from headrace.features.steps import Chains, Steps, build_steps
from headrace.logs.schema import Schema
from headrace.logs.source import ROW_ID

__all__ = ["CompiledPlan", "Domain", "PlanCompiler"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Domain:
    """Features that are computed for the same rows.

    Attributes:
        steps: Their programs.
        groups: Numbers of the groups whose unique rows, or combinations of them, these are; empty for all rows.
        sources: int64 [C], the plan's number of each column that `steps` reads.
        which: int64 [C], the group of each column, -1 for columns that have the rows of the domain as they are.
        gathered: Numbers of the groups in `which`.
        runs: int64 [R, 3], where the dense columns belong, as `expand_rows` wants it.
    """

    steps: Steps
    groups: tuple[int, ...]
    sources: Ints
    which: Ints
    gathered: tuple[int, ...]
    runs: Ints


@dataclass(frozen=True, eq=False)
class CompiledPlan:
    """What one schema of record batches and one grouping make of a plan. Nothing in it changes.

    Sources are numbered: S = the features' C columns, then the labels, then the weight if there is one; the row id
    comes after them.

    Attributes:
        binding: Where each source lies in a batch, and what to cast first.
        grouping: The grouping it was compiled for; None if that is open.
        which: int64 [S], the group column of each source, -1 for plain columns.
        stored: Positions of the group columns in a batch.
        compared: For each group of plain columns to look for equal rows in, the numbers of its sources.
        order: How these are found.
        domains: The features.
        num_columns: C.
        num_dense: Columns of the dense matrix.
        num_labels: Labels L.
        targets: int64 [L or L + 1, 6], the chain of each label and of the weight.
        row_id: Number of the row id; -1 if batches have none.
    """

    binding: Binding
    grouping: Grouping | None
    which: Ints
    stored: tuple[int, ...]
    compared: tuple[Ints, ...]
    order: Literal["adjacent", "any"]
    domains: tuple[Domain, ...]
    num_columns: int
    num_dense: int
    num_labels: int
    targets: Chains
    row_id: int

    @property
    def has_groups(self) -> bool:
        """Whether some features are computed for unique rows, whose numbers are not those of the batch."""
        return bool(self.stored or self.compared)


class PlanCompiler:
    """Compiles features, for one schema of record batches after the other.

    Attributes:
        kinds: What each column holds that a feature may read.
        whole: All features as one domain's programs.
        label_names: Labels to read.
        weight: Column of example weights, if there is one to read.
        sources: Columns in the order of their numbers, without the row id.
    """

    def __init__(self, specs: Sequence[FeatureSpec], schema: Schema, *, with_labels: bool) -> None:
        self.kinds = column_kinds(schema)
        self.whole = build_steps(specs, self.kinds)
        self.label_names = tuple(label.name for label in schema.labels) if with_labels else ()
        self.weight = schema.weight if with_labels else None
        self._targets = (*self.label_names, *([self.weight] if self.weight else []))
        self.sources = (*self.whole.columns, *self._targets)
        self._specs, self._schema = tuple(specs), schema
        self._places = _dense_places(specs)
        # Domains depend on where the groups are alone, and their programs may hold large tables.
        self._domains: dict[tuple[tuple[tuple[str, int], ...], bool], tuple[Domain, ...]] = {}

    def compile(self, schema: pa.Schema, grouping: Grouping | None) -> CompiledPlan:
        """The plan for batches of one schema.

        Args:
            schema: Of the batches.
            grouping: Which plain columns are grouped; does not count where there are group columns.

        Raises:
            DataError: If a column is missing or has a type that does not suit.
        """
        columns = self.whole.columns
        has_row_id = ROW_ID in schema.names
        kinds = self.kinds | dict.fromkeys(self._targets, Kind.NUMBER) | {ROW_ID: Kind.ID}
        binding = bind(schema, [*self.sources, ROW_ID] if has_row_id else self.sources, kinds, self._schema)
        homes = binding.homes[: len(self.sources)]
        stored = tuple(sorted({home for home in homes if home >= 0}))
        which = [stored.index(home) if home >= 0 else -1 for home in homes]
        if stored:
            group_of = {name: number for name, number in zip(columns, which, strict=False) if number >= 0}
            compared: tuple[Ints, ...] = ()
        else:
            groups = () if grouping is None else grouping.groups
            group_of = {name: number for number, group in enumerate(groups) for name in group}
            numbers = [[columns.index(name) for name in group if name in columns] for group in groups]
            compared = tuple(np.array(group, np.int64) for group in numbers)
        targets = [[number, 0, 0, 0, 0, -1] for number in range(len(columns), len(self.sources))]
        return CompiledPlan(
            binding=binding,
            grouping=grouping,
            which=np.array(which, np.int64),
            stored=stored,
            compared=compared,
            order="adjacent" if grouping is None else grouping.order,
            domains=self._split(group_of, stored=bool(stored)),
            num_columns=len(columns),
            num_dense=len(self.whole.dense_names),
            num_labels=len(self.label_names),
            targets=np.array(targets, np.int64).reshape(-1, 6),
            row_id=len(self.sources) if has_row_id else -1,
        )

    def _split(self, group_of: Mapping[str, int], *, stored: bool) -> tuple[Domain, ...]:
        """Split the features by the rows they are computed for.

        Args:
            group_of: The group of each column that is in one.
            stored: Columns of groups hold unique rows only, as in group columns; else those of every row.
        """
        key = (tuple(sorted(group_of.items())), stored)
        if key not in self._domains:
            by_groups: dict[tuple[int, ...], list[FeatureSpec]] = {}
            for spec in self._specs:
                by_groups.setdefault(_groups_of(spec, group_of), []).append(spec)
            self._domains[key] = tuple(
                self._domain(groups, members, group_of, stored=stored) for groups, members in sorted(by_groups.items())
            )
        return self._domains[key]

    def _domain(
        self, groups: tuple[int, ...], specs: Sequence[FeatureSpec], group_of: Mapping[str, int], *, stored: bool
    ) -> Domain:
        if len(specs) == len(self._specs) and not groups:
            steps = self.whole
        else:
            steps = build_steps(specs, self.kinds, None if groups else self._places)
        gathered = stored or bool(groups)
        which = [group_of.get(name, -1) if gathered else -1 for name in steps.columns]
        runs: list[list[int]] = []
        widths = {spec.name: _width(spec) for spec in specs}
        for name, at in _dense_places(specs).items():
            if runs and runs[-1][0] + runs[-1][2] == at and runs[-1][1] + runs[-1][2] == self._places[name]:
                runs[-1][2] += widths[name]
            else:
                runs.append([at, self._places[name], widths[name]])
        return Domain(
            steps,
            groups,
            np.array([self.whole.columns.index(name) for name in steps.columns], np.int64),
            np.array(which, np.int64),
            tuple(sorted(set(which) - {-1})),
            np.array(runs, np.int64).reshape(-1, 3),
        )


def _groups_of(spec: FeatureSpec, group_of: Mapping[str, int]) -> tuple[int, ...]:
    """The groups that a feature's rows are combinations of; empty if it must be computed for all rows."""
    if any(operator.reads_row_ids for operator in spec.operators):
        return ()
    columns = [*spec.sources, *([spec.weights] if spec.weights is not None else [])]
    if any(name not in group_of for name in columns):
        return ()
    return tuple(sorted({group_of[name] for name in columns}))


def _dense_places(specs: Sequence[FeatureSpec]) -> dict[str, int]:
    """First column of each dense feature in the matrix of all of them."""
    places, at = {}, 0
    for spec in specs:
        if spec.section == "dense":
            places[spec.name] = at
            at += _width(spec)
    return places


def _width(spec: FeatureSpec) -> int:
    last = spec.operators[-1] if spec.operators else None
    return last.num_columns if isinstance(last, OneHot) else 1
