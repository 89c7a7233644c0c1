"""`CompiledPlan`: a feature plan compiled for record batches of one Arrow schema.

Features are split into *domains* by the rows they are computed for. A feature whose columns are all in one group is
computed once per unique row of that group. A feature that mixes groups is computed once per occurring combination of
their unique rows. A feature that also reads a plain column, or the row id, is computed for every row; only the columns
it reads are expanded. Without groups there is one domain: all features, for all rows.
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
        steps: Programs of the features.
        groups: Numbers of the groups whose unique rows, or combinations of them, form the domain; empty for all rows.
        sources: int64 [C], number in the plan of each column that `steps` reads.
        which: int64 [C], group of each column; -1 for columns whose rows are already those of the domain.
        gathered: Numbers of the groups that occur in `which`.
        runs: int64 [R, 3], target columns of the dense features, the argument of `expand_rows`.
    """

    steps: Steps
    groups: tuple[int, ...]
    sources: Ints
    which: Ints
    gathered: tuple[int, ...]
    runs: Ints


@dataclass(frozen=True, eq=False)
class CompiledPlan:
    """A plan compiled for one Arrow schema and one grouping. Immutable.

    Sources are numbered: the features' C columns, then the labels, then the weight if there is one (S in total), then
    the row id.

    Attributes:
        binding: Where each source is in a batch, and which columns to cast first.
        grouping: The grouping it was compiled for; None if not yet decided.
        which: int64 [S], group column of each source; -1 for plain columns.
        stored: Positions of group columns in a batch.
        compared: Source numbers of each group of plain columns in which equal rows are searched.
        order: How equal rows are found.
        domains: The features, by domain.
        num_columns: Number of feature columns C.
        num_dense: Number of columns of the dense matrix.
        num_labels: Number of labels L.
        targets: int64 [L or L + 1, 6], chains of the labels and of the weight.
        row_id: Source number of the row id; -1 if batches have none.
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
        """Whether some features are computed for unique rows, whose numbers differ from row numbers of the batch."""
        return bool(self.stored or self.compared)


class PlanCompiler:
    """Compiles features for record batch schemas.

    Attributes:
        kinds: Kind of each column that a feature may read.
        whole: Programs of all features as a single domain.
        label_names: Label columns to read.
        weight: Example weight column to read, or None.
        sources: Columns by source number, without the row id.
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
        # Domains depend only on the groups and are cached: their programs may hold large tables.
        self._domains: dict[tuple[tuple[tuple[str, int], ...], bool], tuple[Domain, ...]] = {}

    def compile(self, schema: pa.Schema, grouping: Grouping | None) -> CompiledPlan:
        """Compile the plan for batches of one schema.

        Args:
            schema: Arrow schema of the batches.
            grouping: How plain columns are grouped; ignored if the batches have group columns.

        Raises:
            DataError: A column is missing or has an unsuitable type.
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
        """Split the features into domains.

        Args:
            group_of: Group of each grouped column.
            stored: Whether grouped columns hold only unique rows (group columns) rather than every row.
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
    """The groups that a feature reads; empty if it must be computed for all rows."""
    if any(operator.reads_row_ids for operator in spec.operators):
        return ()
    columns = [*spec.sources, *([spec.weights] if spec.weights is not None else [])]
    if any(name not in group_of for name in columns):
        return ()
    return tuple(sorted({group_of[name] for name in columns}))


def _dense_places(specs: Sequence[FeatureSpec]) -> dict[str, int]:
    """First matrix column of each dense feature."""
    places, at = {}, 0
    for spec in specs:
        if spec.section == "dense":
            places[spec.name] = at
            at += _width(spec)
    return places


def _width(spec: FeatureSpec) -> int:
    last = spec.operators[-1] if spec.operators else None
    return last.num_columns if isinstance(last, OneHot) else 1
