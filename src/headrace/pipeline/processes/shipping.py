"""Sending user functions to worker processes: by name where they can be imported, else by value."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import cloudpickle

from headrace.errors import ConfigError
from headrace.pipeline.pipeline import Stage

__all__ = ["ship"]


def ship(stages: Sequence[Stage]) -> bytes:
    """The operations of some stages, to be loaded with pickle by a worker process.

    Raises:
        ConfigError: A function holds something that belongs to this process; names it.
    """
    operations = [stage.operation for stage in stages]
    try:
        if not any(_is_from_main(operation) for operation in operations):
            return pickle.dumps(operations)
    except (pickle.PicklingError, AttributeError, TypeError):
        pass  # a lambda, or a function inside another
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
