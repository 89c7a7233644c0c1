"""The table of operators in the documentation, made from their declarations."""

from __future__ import annotations

from pydantic_core import PydanticUndefined

from headrace.features.operator import ColumnOperator, Kind, Operator
from headrace.features.registry import operators

__all__ = ["operator_table"]

_SHORT = {Kind.NUMBER: "number", Kind.NUMBERS: "numbers", Kind.ID: "id", Kind.IDS: "ids"}


def operator_table() -> str:
    """A Markdown table of all registered operators: name, kinds it takes, parameters with defaults, purpose."""
    lines = ["| operator | takes | parameters | what it does |", "|---|---|---|---|"]
    for name, operator in operators().items():
        takes = ", ".join(_SHORT[kind] for kind in operator.takes)
        if issubclass(operator, ColumnOperator):
            takes = f"columns of {takes}"
        purpose = operator.purpose.replace("|", "\\|")
        lines.append(f"| `{name}` | {takes} | {_parameters(operator)} | {purpose} |")
    return "\n".join(lines)


def _parameters(operator: type[Operator]) -> str:
    """The parameters with their defaults; the one that may be written alone comes with a star."""
    texts = []
    for name, field in operator.model_fields.items():
        shown = field.alias or name
        star = "*" if operator.shorthand in (name, shown) else ""
        default = "" if field.default is PydanticUndefined else f" = {_shown(field.default)}"
        texts.append(f"`{shown}{default}`{star}")
    return ", ".join(texts) or "none"


def _shown(default: object) -> str:
    """A default as YAML writes it."""
    if default is None or isinstance(default, bool):
        return {None: "null", True: "true", False: "false"}[default]
    return f"{default:g}" if isinstance(default, float) else str(default)
