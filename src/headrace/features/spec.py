"""`FeatureSpec`: parses and checks the `features:` section of a job file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from headrace.errors import ConfigError
from headrace.features.operator import ColumnOperator, Kind, Operator
from headrace.features.operators import Fill, FirstX, Log1p, OneHot
from headrace.features.registry import operator_from_job
from headrace.logs.schema import Schema
from headrace.messages import shorten, shorten_list

__all__ = ["FeatureSpec", "column_kinds", "default_specs", "read_specs"]

Section = Literal["dense", "sparse"]

_DEFAULT_LIST_LENGTH = 50  # longer histories rarely help, and a single outlier would determine a batch's memory


@dataclass(frozen=True)
class FeatureSpec:
    """Specification of one feature.

    Attributes:
        name: Column of `Batch.dense` or key of `Batch.sparse`.
        section: "dense" or "sparse".
        sources: Log columns, at least one.
        operators: Operators, applied in order; parameters defined by the schema are filled in.
        weights: Column with a weight for each id of a list, or None.
    """

    name: str
    section: Section
    sources: tuple[str, ...]
    operators: tuple[Operator, ...]
    weights: str | None = None

    @property
    def where(self) -> str:
        """The feature's name in error messages."""
        return f"features.{self.section}.{self.name}"


def column_kinds(schema: Schema) -> dict[str, Kind]:
    """Kind of each column that features may read; labels and example weights are excluded."""
    kinds = {column.name: Kind.NUMBER for column in schema.dense}
    kinds |= {column.name: Kind.ID for column in schema.ids}
    kinds |= {column.name: Kind.IDS for column in schema.id_lists}
    kinds |= {column.weights: Kind.NUMBERS for column in schema.id_lists if column.weights is not None}
    singles = [schema.session_id, schema.row_id, None if schema.timestamp is None else schema.timestamp.name]
    return kinds | {name: Kind.ID for name in singles if name is not None}


def default_specs(schema: Schema) -> tuple[FeatureSpec, ...]:
    """One feature per column: numbers with fill and log1p, ids unchanged, the first 50 ids of lists."""
    dense = [FeatureSpec(c.name, "dense", (c.name,), (Fill(value=0.0), Log1p())) for c in schema.dense]
    ids = [FeatureSpec(c.name, "sparse", (c.name,), ()) for c in schema.ids]
    first = (FirstX(count=_DEFAULT_LIST_LENGTH),)
    lists = [FeatureSpec(c.name, "sparse", (c.name,), first, c.weights) for c in schema.id_lists]
    return tuple(dense + ids + lists)


def read_specs(config: Any, schema: Schema) -> tuple[FeatureSpec, ...]:
    """Parse the `features:` section of a job file.

    Returns:
        Dense features first, in the order given. With `others: default`, the default features of each section that are
        not listed by name follow the listed ones.

    Raises:
        ConfigError: Names the feature, operator and key, what was given and what was expected.
    """
    section = _mapping(config, "features", "dense and sparse")
    unknown = sorted(str(key) for key in section if key not in ("dense", "sparse", "others"))
    if unknown:
        raise ConfigError(f"features.{unknown[0]}: unknown key, expected dense, sparse, others or dedup")
    if section.get("others", "default") != "default":
        raise ConfigError(
            f"features.others: given {shorten(repr(section['others']))}, expected default: every column of the schema "
            "that is not listed is a feature, too"
        )
    others = default_specs(schema) if "others" in section else ()
    specs = []
    for name in ("dense", "sparse"):
        features = _mapping(section.get(name) or {}, f"features.{name}", "feature names to operators")
        specs += [_read_spec(str(key), name, value, schema) for key, value in features.items()]
        specs += [spec for spec in others if spec.section == name and spec.name not in features]
    if not specs:
        raise ConfigError("features: no features, expected at least one under dense or sparse")
    return tuple(specs)


def _read_spec(name: str, section: Section, entry: Any, schema: Schema) -> FeatureSpec:
    where = f"features.{section}.{name}"
    sources: Any = name
    entries, weights = entry, None
    if isinstance(entry, dict):
        unknown = sorted(str(key) for key in entry if key not in ("from", "ops", "weights"))
        if unknown:
            raise ConfigError(
                f"{where}.{unknown[0]}: unknown key, expected from, ops or weights (put operators in a list)"
            )
        sources, entries, weights = entry.get("from", name), entry.get("ops"), entry.get("weights")
    if not isinstance(entries, list | tuple | None):
        raise ConfigError(f"{where}: given {shorten(repr(entries))}, expected a list of operators")
    names = [sources] if isinstance(sources, str) else sources
    if not isinstance(names, list | tuple) or not names or not all(isinstance(item, str) for item in names):
        raise ConfigError(f"{where}.from: given {shorten(repr(sources))}, expected a column or a list of columns")
    known = column_kinds(schema)
    for column in names:
        if column not in known:
            raise ConfigError(f"{where}: given column {column!r}, expected one of the schema's: {shorten_list(known)}")
    operators = []
    for number, item in enumerate(entries or (), start=1):
        at = f"{where}, operator {number}"
        operator = operator_from_job(item, where=at)
        try:
            operators.append(operator.resolve(names, schema))
        except ConfigError as error:
            raise ConfigError(f"{at} ({operator.name}): {error}") from error
    spec = FeatureSpec(name, section, tuple(names), tuple(operators), weights)
    _check_kinds(spec, schema)
    if weights is not None:
        _check_weights(spec, schema)
    return spec


def _check_kinds(spec: FeatureSpec, schema: Schema) -> None:
    """Check that each operator accepts its predecessor's result and that the last one suits the section."""
    known = column_kinds(schema)
    kinds = [known[name] for name in spec.sources]
    for number, operator in enumerate(spec.operators, start=1):
        where = f"{spec.where}, operator {number} ({operator.name})"
        for kind in kinds:
            if kind not in operator.takes:
                expected = " or ".join(taken.value for taken in operator.takes)
                raise ConfigError(f"{where}: given {kind.value}, expected {expected}")
        if isinstance(operator, OneHot) and (spec.section == "sparse" or operator is not spec.operators[-1]):
            raise ConfigError(f"{where}: expected as the last operator of a dense feature")
        try:
            kinds = _operator_kinds(operator, kinds)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
    if len(kinds) != 1:
        raise ConfigError(f"{spec.where}: ends with {len(kinds)} columns, expected an operator that joins them")
    if spec.section == "dense" and kinds[0] is not Kind.NUMBER:
        raise ConfigError(
            f"{spec.where}: ends with {kinds[0].value}, expected a number; add an operator such as cast: number"
        )
    if spec.section == "sparse" and not kinds[0].has_ids:
        raise ConfigError(f"{spec.where}: ends with {kinds[0].value}, expected ids; add an operator such as bucketize")


def _check_weights(spec: FeatureSpec, schema: Schema) -> None:
    """Check that weights are numbers that stay aligned with the ids of one list."""
    known = column_kinds(schema)
    if spec.weights not in known or known[spec.weights] is not Kind.NUMBERS:
        lists = shorten_list(name for name, kind in known.items() if kind is Kind.NUMBERS) or "none in this schema"
        raise ConfigError(f"{spec.where}.weights: given {spec.weights!r}, expected a column of weights: {lists}")
    if [known[name] for name in spec.sources] != [Kind.IDS] or spec.section != "sparse":
        raise ConfigError(
            f"{spec.where}.weights: given {spec.weights!r}, expected only for one list of ids under sparse"
        )
    for operator in spec.operators:
        if isinstance(operator, ColumnOperator):
            raise ConfigError(f"{spec.where}.weights: given {spec.weights!r}, but {operator.name} makes new ids")


def _operator_kinds(operator: Operator, kinds: list[Kind]) -> list[Kind]:
    """Kinds after an operator: a fused operator applies to each column, a column operator joins them."""
    if isinstance(operator, ColumnOperator):
        kind = operator.returns(kinds)
        if kind is Kind.ID:
            raise ConfigError("the operator returns Kind.ID, expected Kind.IDS (lists of at most one id)")
        return [kind]
    return [operator.returns([kind]) for kind in kinds]


def _mapping(value: Any, where: str, expected: str) -> Mapping[Any, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: given {type(value).__name__}, expected a mapping of {expected}")
    return value
