"""Splits the features of a job into groups, which are computed and pulled separately."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from headrace.features import FeaturePlan
from headrace.features.spec import FeatureSpec
from headrace.logs.schema import Schema
from headrace.scheduling.graph import ALL_GROUPS

__all__ = ["MAX_GROUPS", "FeatureGroup", "FeatureGroups", "group_features"]

MAX_GROUPS = 4
"""Maximum groups per step: enough that the pull of one is hidden by the computation of others, and few enough that the
fixed cost of each (about a millisecond: calling its plan, finding unique ids, splitting gradients) is smaller than the
gain."""

GUESSED_LIST_LENGTH = 20.0
"""List length if the schema does not define it, as in the feature plan's initial guess."""


@dataclass(frozen=True, eq=False)
class FeatureGroup:
    """Features that are computed together.

    Attributes:
        plan: Plan of only these features.
        features: Keys of its sparse features.
    """

    plan: FeaturePlan
    features: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class FeatureGroups:
    """The features of a job, as a whole and split into groups.

    Attributes:
        whole: All features as one group.
        parts: The feature groups.
    """

    whole: FeatureGroup
    parts: tuple[FeatureGroup, ...]

    def __len__(self) -> int:
        return len(self.parts)

    def of(self, group: int) -> FeatureGroup:
        """A group by its number, or the whole for `ALL_GROUPS`."""
        return self.whole if group == ALL_GROUPS else self.parts[group]


def group_features(
    plan: FeaturePlan,
    tables_of: Callable[[str], Sequence[str]],
    *,
    max_groups: int = MAX_GROUPS,
) -> FeatureGroups:
    """Split a plan into feature groups that together compute the same batch.

    Features that share a table stay together, so the ids of a group are unique over the whole batch, and the sum of
    a key's gradients does not depend on the grouping. All dense features, labels and weights are in the first group.

    Args:
        plan: The job's plan.
        tables_of: Tables of a sparse feature, one for each module that looks it up.
        max_groups: Maximum number of groups; the cheapest are merged.
    """
    schema = plan.schema
    dense = [spec for spec in plan.specs if spec.section == "dense"]
    sparse = [spec for spec in plan.specs if spec.section == "sparse"]
    bins: list[tuple[float, list[FeatureSpec]]] = [(sum(_weight(spec, schema) for spec in dense), dense)]
    linked = sorted(_linked(sparse, tables_of), key=lambda specs: -sum(_weight(spec, schema) for spec in specs))
    for specs in linked:
        weight = sum(_weight(spec, schema) for spec in specs)
        if len(bins) < max_groups:
            bins.append((weight, specs))
            continue
        lightest = min(range(len(bins)), key=lambda number: bins[number][0])
        bins[lightest] = bins[lightest][0] + weight, bins[lightest][1] + specs
    place = {spec.name: number for number, spec in enumerate(plan.specs)}
    groups = []
    for number, (_, specs) in enumerate(bins):
        ordered = sorted(specs, key=lambda spec: (spec.section, place[spec.name]))
        part = plan.part(ordered, with_labels=number == 0 and bool(plan.label_names))
        groups.append(FeatureGroup(part, part.sparse_keys))
    return FeatureGroups(FeatureGroup(plan, plan.sparse_keys), tuple(groups))


def _linked(specs: Sequence[FeatureSpec], tables_of: Callable[[str], Sequence[str]]) -> list[list[FeatureSpec]]:
    """Features connected by shared tables, in the order of the first of each."""
    components: list[tuple[set[str], list[FeatureSpec]]] = []
    for spec in specs:
        tables, members = set(tables_of(spec.name)), [spec]
        rest = []
        for other_tables, others in components:
            if tables & other_tables:
                tables |= other_tables
                members = others + members
            else:
                rest.append((other_tables, others))
        components = [*rest, (tables, members)]
    return [members for _, members in components]


def _weight(spec: FeatureSpec, schema: Schema) -> float:
    """Guess the cost of a feature: elements per row times passes over them."""
    lists = {column.name for column in schema.id_lists}
    length = sum(GUESSED_LIST_LENGTH if name in lists else 1.0 for name in spec.sources)
    return length * (1 + len(spec.operators))
