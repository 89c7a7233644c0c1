"""`Transformation`: the work of one stage as data: what it does to an element, and what that costs in memory."""

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
"""What happens to rows on which a user function raises."""


class Transformation(ABC):
    """Turns one element into one element; frozen, and called by several threads at once.

    Attributes:
        kind: The method of `Pipeline` that adds it.
        can_use_processes: Whether a worker process may run it: it needs nothing but the rows.
        bad_rows: What to do with rows it raises on, or None if it works on elements as a whole.
    """

    kind: ClassVar[str]
    can_use_processes: ClassVar[bool] = False
    bad_rows: BadRows | None = None

    @abstractmethod
    def __call__(self, payload: Any, seed: tuple[int, ...]) -> Any:
        """The new payload; `seed` is (epoch, key of the element): all that random numbers may depend on."""

    @property
    def rebatch(self) -> Rebatch | None:
        """How rows are regrouped in front of it; None leaves elements as they come."""
        return None

    @property
    def label(self) -> str:
        """The user's function by name, for error texts; empty if there is none."""
        return ""

    @property
    def signature(self) -> str:
        """What a saved position must agree with; empty if it does not decide where rows go."""
        return ""

    def num_bytes(self, result: Any, num_bytes_in: int) -> int:
        """Cost in memory: bytes of a result made from a payload of `num_bytes_in`."""
        return size_of(result, num_bytes_in)


def function_name(function: Callable[..., Any]) -> str:
    """The name of a function in texts."""
    return str(getattr(function, "__qualname__", None) or type(function).__qualname__)


def rng_seed(kind: str, function: Callable[..., Any], seed: int, position: int) -> tuple[int, int] | None:
    """Where the random numbers of a user function start, if it has a parameter `rng`.

    Two stages draw different numbers from the same seed: their positions are mixed in.

    Raises:
        ConfigError: It is no function, or the seed is no whole number.
    """
    if not callable(function):
        raise ConfigError(f"{kind}: expected a function of a record batch, given {type(function).__name__}")
    expect_count(kind, "seed", seed, at_least=0)
    try:
        takes_rng = "rng" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # built in, without a signature
        takes_rng = False
    return (seed, position) if takes_rng else None


def call_user_function(
    function: Callable[..., Any], rows: pa.RecordBatch, rng_seed: tuple[int, ...] | None, seed: tuple[int, ...]
) -> Any:
    """Call a function on plain columns, with a generator of its own if it takes one."""
    rows = groups.expand(rows)
    return function(rows) if rng_seed is None else function(rows, rng=np.random.default_rng((*rng_seed, *seed)))


def expect_count(stage: str, name: str, value: object, *, at_least: int) -> None:
    """Check an argument.

    Raises:
        ConfigError: It is no whole number, or too small.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ConfigError(f"{stage}: {name}: given {value!r}, expected a whole number from {at_least} on")


def size_of(payload: Any, expected: int = 0) -> int:
    """Bytes of a payload.

    Args:
        payload: A record batch, an object that tells its `num_bytes` or `nbytes`, or a collection of those.
        expected: A record batch whose buffers hold more than twice this is taken for a view of a larger one, of which
            only its own rows count, and of groups the unique rows they have. (Counting those costs 70 us for 40
            columns, the buffers 1 us.)
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
