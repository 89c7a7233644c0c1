"""How hot loops are compiled: Numba without the GIL, cached on disk, with C semantics for division."""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import numba

P = ParamSpec("P")
R = TypeVar("R")


def kernel(*, parallel: bool = False, fastmath: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator that compiles a function of arrays and scalars on its first call.

    The result releases the GIL while it runs and is kept on disk, so a later process loads it instead of compiling.

    Args:
        parallel: Let `numba.prange` loops use Numba's threads.
        fastmath: Allow reassociation of floating-point sums. Leave it off where results must match bit for bit.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        options: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
        return cast(Callable[P, R], numba.njit(function, parallel=parallel, fastmath=fastmath, **options))

    return decorate
