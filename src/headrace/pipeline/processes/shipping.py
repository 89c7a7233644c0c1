"""Sending user functions to worker processes: by name where they can be imported, else by value."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import cloudpickle

from headrace.errors import ConfigError
from headrace.pipeline.transformations.transformation import Transformation

__all__ = ["ship"]


def ship(name: str, transformations: Sequence[Transformation]) -> bytes:
    """Some transformations, to be loaded with pickle by a worker process.

    Args:
        name: Of their stages, for errors.
        transformations: To be applied there.

    Raises:
        ConfigError: A function holds something that belongs to this process; names it.
    """
    try:
        if not any(_is_from_main(transformation) for transformation in transformations):
            return pickle.dumps(transformations)
    except (pickle.PicklingError, AttributeError, TypeError):
        pass  # a lambda, or a function inside another
    try:
        shipped: bytes = cloudpickle.dumps(transformations)
    except Exception as error:
        raise ConfigError(
            f"stage {name}: its function cannot be sent to a worker process: {error}; "
            "it holds something that belongs to this process, such as a lock or an open file"
        ) from error
    return shipped


def _is_from_main(transformation: Any) -> bool:
    function: Callable[..., Any] | None = getattr(transformation, "function", None)
    function = function or getattr(transformation, "predicate", None)
    while isinstance(function, partial):
        function = function.func
    return getattr(function, "__module__", None) == "__main__" or type(function).__module__ == "__main__"
