"""Sending user functions to worker processes: by name where they can be imported, else by value with cloudpickle."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any

from headrace.errors import ConfigError
from headrace.pipeline.graph import Stage

__all__ = ["ship"]


def ship(stages: Sequence[Stage]) -> bytes:
    """The operations of some stages, to be loaded with pickle by a worker process.

    Raises:
        ConfigError: A function can neither be imported by name nor be sent by value; says what to do.
    """
    operations = [stage.operation for stage in stages]
    try:
        if not any(_is_from_main(operation) for operation in operations):
            return pickle.dumps(operations)
    except (pickle.PicklingError, AttributeError, TypeError):
        pass  # a lambda, or a function inside another
    try:
        cloudpickle = import_module("cloudpickle")
    except ImportError:
        names = ", ".join(stage.operation.label or stage.name for stage in stages)
        raise ConfigError(
            f"stage {stages[0].name}: a worker process cannot import {names} by name; "
            "define it at the top level of a module that is not the main script, or: pip install 'headrace[process]'"
        ) from None
    try:
        shipped: bytes = cloudpickle.dumps(operations)
    except Exception as error:
        raise ConfigError(
            f"stage {stages[0].name}: its function cannot be sent to a worker process: {error}; "
            "it holds something that belongs to this process, such as a lock or an open file"
        ) from error
    return shipped


def _is_from_main(operation: Any) -> bool:
    function: Callable[..., Any] | None = getattr(operation, "function", None) or getattr(operation, "predicate", None)
    while isinstance(function, partial):
        function = function.func
    return getattr(function, "__module__", None) == "__main__" or type(function).__module__ == "__main__"
