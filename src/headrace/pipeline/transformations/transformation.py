"""`Transformation`: the operation of one stage and its memory cost."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from headrace.errors import ConfigError
from headrace.logs import groups
from headrace.pipeline.transformations.slices import Rebatch

__all__ = ["BadRows", "Transformation", "call_user_function", "expect_count", "function_name", "rng_seed", "size_of"]

BadRows = Literal["fail", "drop", "quarantine"]
"""How to handle rows on which a user function raises."""


class Transformation(ABC):
    """Turns one element into one element. Frozen and thread-safe.

    Attributes:
        kind: Name of the `Pipeline` method that adds it.
        can_use_processes: Whether a worker process may run it, because it needs only the rows.
        bad_rows: How to handle rows on which it raises, or None if it works on whole elements.
    """

    kind: ClassVar[str]
    can_use_processes: ClassVar[bool] = False
    bad_rows: BadRows | None = None

    @abstractmethod
    def __call__(self, payload: Any, seed: tuple[int, ...]) -> Any:
        """Return the new payload. Random numbers may depend only on `seed`, which is (epoch, key of the element)."""

    def of_segment(self, segment: int) -> Transformation:
        """The transformation for the elements of a segment; not called for transformations in worker processes."""
        return self

    @property
    def rebatch(self) -> Rebatch | None:
        """How to regroup rows before it; None leaves elements as they are."""
        return None

    @property
    def label(self) -> str:
        """Name of the user's function, for error messages; empty if there is none."""
        return ""

    @property
    def signature(self) -> str:
        """The parameters that determine row order, which a saved position depends on; empty if there are none."""
        return ""

    def num_bytes(self, result: Any, num_bytes_in: int) -> int:
        """Memory cost: bytes of a result made from a payload of `num_bytes_in` bytes."""
        return size_of(result, num_bytes_in)


def function_name(function: Callable[..., Any]) -> str:
    """Name of a function, for messages."""
    return str(getattr(function, "__qualname__", None) or type(function).__qualname__)


def rng_seed(kind: str, function: Callable[..., Any], seed: int, position: int) -> tuple[int, int] | None:
    """Seed of a user function's random numbers, if it has a parameter `rng`.

    The stage's position is mixed in, so two stages with the same seed draw different numbers.

    Raises:
        ConfigError: The value is not callable, or the seed is not an integer.
    """
    if not callable(function):
        raise ConfigError(f"{kind}: expected a function of a record batch, given {type(function).__name__}")
    expect_count(kind, "seed", seed, at_least=0)
    try:
        takes_rng = "rng" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        takes_rng = False
    return (seed, position) if takes_rng else None


def call_user_function(
    function: Callable[..., Any], rows: pa.RecordBatch, rng_seed: tuple[int, ...] | None, seed: tuple[int, ...]
) -> Any:
    """Call a function on plain columns, with a fresh random generator if it takes one."""
    rows = groups.expand(rows)
    return function(rows) if rng_seed is None else function(rows, rng=np.random.default_rng((*rng_seed, *seed)))


def expect_count(stage: str, name: str, value: object, *, at_least: int) -> None:
    """Check that an argument is an integer of at least `at_least`.

    Raises:
        ConfigError: It is not an integer, or too small.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ConfigError(f"{stage}: {name}: given {value!r}, expected a whole number from {at_least} on")


def size_of(payload: Any, expected: int = 0) -> int:
    """Estimate the bytes of a payload.

    Args:
        payload: A record batch, an object with `num_bytes` or `nbytes`, or a collection of those.
        expected: A record batch whose buffers exceed twice this size is assumed to be a view of a larger one; then only
            its own rows count, and of column groups only the unique rows in use. (Counting rows takes 70 us for 40
            columns, counting buffers 1 us.)
    """
    if isinstance(payload, pa.RecordBatch):
        total = int(payload.get_total_buffer_size())
        if total <= 2 * expected:
            return total
        own = groups.num_bytes(payload) if groups.has_groups(payload.schema) else int(payload.nbytes)
        return min(total, own)
    size = getattr(payload, "num_bytes", None)
    if isinstance(size, int):
        return size
    if isinstance(payload, dict):
        return sum(size_of(value) for value in payload.values())
    if isinstance(payload, list | tuple):
        return sum(size_of(value) for value in payload)
    size = getattr(payload, "nbytes", 0)  # numpy arrays, torch tensors
    return size if isinstance(size, int) else 0
