"""Which operators there are, by the names job files use."""

from __future__ import annotations

from typing import Any, TypeVar

from headrace.errors import ConfigError
from headrace.features.operator import Operator
from headrace.messages import shorten_list

__all__ = ["operator_from_job", "operators", "register"]

AnyOperator = TypeVar("AnyOperator", bound=type[Operator])

_operators: dict[str, type[Operator]] = {}


def register(operator: AnyOperator) -> AnyOperator:
    """Make an operator known to job files under its `name`; also a class decorator.

    Raises:
        ConfigError: If another operator has that name.
    """
    known = _operators.setdefault(operator.name, operator)
    if known is not operator and known.__qualname__ != operator.__qualname__:
        raise ConfigError(
            f"operator {operator.name}: two of that name, {known.__qualname__} and {operator.__qualname__}"
        )
    _operators[operator.name] = operator
    return operator


def operators() -> dict[str, type[Operator]]:
    """All registered operators by name, in alphabetical order."""
    return dict(sorted(_operators.items()))


def operator_from_job(entry: Any, *, where: str) -> Operator:
    """An operator as a job file writes it: `log1p`, `fill: 0` or `clamp: {min: 0}`.

    Raises:
        ConfigError: Names the feature, the operator, the parameter, what was given and what was expected.
    """
    if isinstance(entry, str):
        name, parameters = entry, None
    elif isinstance(entry, dict) and len(entry) == 1:
        name, parameters = next(iter(entry.items()))
    else:
        raise ConfigError(f"{where}: given {entry!r}, expected the name of an operator or `name: parameters`")
    operator = _operators.get(name)
    if operator is None:
        raise ConfigError(f"{where}: given operator {name!r}, expected one of {shorten_list(sorted(_operators))}")
    return operator.from_job(parameters, where=f"{where} ({name})")
