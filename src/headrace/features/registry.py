"""The registry of operators by name, and their table in the documentation."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic_core import PydanticUndefined

from headrace.errors import ConfigError
from headrace.features.operator import ColumnOperator, Kind, Operator
from headrace.registry import OPERATORS

__all__ = ["operator_from_job", "operator_table", "operators", "register"]

AnyOperator = TypeVar("AnyOperator", bound=type[Operator])

_SHORT = {Kind.NUMBER: "number", Kind.NUMBERS: "numbers", Kind.ID: "id", Kind.IDS: "ids"}


def register(operator: AnyOperator) -> AnyOperator:
    """Register an operator under its `name` for use in job files; can be used as a class decorator.

    Raises:
        ConfigError: Another operator has that name.
    """
    OPERATORS.register(operator.name, operator)
    return operator


def operators() -> dict[str, type[Operator]]:
    """All registered operators by name, sorted."""
    return {name: OPERATORS[name] for name in sorted(OPERATORS)}


def operator_from_job(entry: Any, *, where: str) -> Operator:
    """Create an operator from a job file entry: `log1p`, `fill: 0` or `clamp: {min: 0}`.

    Raises:
        ConfigError: The entry is invalid; names the feature, operator and parameter, the given and the expected value.
    """
    if isinstance(entry, str):
        name, parameters = entry, None
    elif isinstance(entry, dict) and len(entry) == 1:
        name, parameters = next(iter(entry.items()))
    else:
        raise ConfigError(f"{where}: given {entry!r}, expected the name of an operator or `name: parameters`")
    operator = OPERATORS.find(str(name), where=where)
    if not isinstance(operator, type) or not issubclass(operator, Operator):
        raise ConfigError(f"{where}: given {name}, expected a subclass of headrace.features.Operator")
    return operator.from_job(parameters, where=f"{where} ({name})")


def operator_table() -> str:
    """A Markdown table of all registered operators: name, accepted kinds, parameters with defaults, purpose."""
    lines = ["| operator | takes | parameters | what it does |", "|---|---|---|---|"]
    for name, operator in operators().items():
        takes = ", ".join(_SHORT[kind] for kind in operator.takes)
        if issubclass(operator, ColumnOperator):
            takes = f"columns of {takes}"
        purpose = operator.purpose.replace("|", "\\|")
        lines.append(f"| `{name}` | {takes} | {_parameters(operator)} | {purpose} |")
    return "\n".join(lines)


def _parameters(operator: type[Operator]) -> str:
    """The parameters with their defaults; the shorthand parameter has a star."""
    texts = []
    for name, field in operator.model_fields.items():
        shown = field.alias or name
        star = "*" if operator.shorthand in (name, shown) else ""
        default = "" if field.default is PydanticUndefined else f" = {_shown(field.default)}"
        texts.append(f"`{shown}{default}`{star}")
    return ", ".join(texts) or "none"


def _shown(default: object) -> str:
    """A default value in YAML notation."""
    if default is None or isinstance(default, bool):
        return {None: "null", True: "true", False: "false"}[default]
    return f"{default:g}" if isinstance(default, float) else str(default)
