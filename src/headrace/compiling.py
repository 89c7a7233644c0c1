"""How hot loops are compiled: Numba without the GIL, cached on disk, with C semantics for division."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any, ParamSpec, TypeVar, cast

import numba

P = ParamSpec("P")
R = TypeVar("R")


def kernel(*, parallel: bool = False, fastmath: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator that compiles a function of arrays and scalars on its first call.

    The result releases the GIL while it runs and is kept on disk, so a later process loads it instead of compiling.
    What is kept is used only while neither the kernel's file nor that of a kernel it calls has changed.

    Args:
        parallel: Let `numba.prange` loops use Numba's threads.
        fastmath: Allow reassociation of floating-point sums. Leave it off where results must match bit for bit.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        options: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
        dispatcher = numba.njit(function, parallel=parallel, fastmath=fastmath, **options)
        # Numba looks at the kernel's own file only, and would call code compiled from what a callee once was.
        cache_file = dispatcher._cache._cache_file
        cache_file._source_stamp = (cache_file._source_stamp, source_stamp(cast(FunctionType, function)))
        return cast(Callable[P, R], dispatcher)

    return decorate


def source_stamp(function: FunctionType) -> tuple[tuple[str, int, int], ...]:
    """Name, time of change in ns and bytes of each file that holds the function or a kernel it calls."""
    files = {f.__code__.co_filename for f in _with_callees(function, set())}
    return tuple((os.path.basename(f), os.stat(f).st_mtime_ns, os.stat(f).st_size) for f in sorted(files))


def _with_callees(function: FunctionType, seen: set[str]) -> Iterator[FunctionType]:
    seen.add(function.__qualname__ + function.__module__)
    yield function
    for name in function.__code__.co_names:
        callee = getattr(function.__globals__.get(name), "py_func", None)
        if callee is not None and callee.__qualname__ + callee.__module__ not in seen:
            yield from _with_callees(callee, seen)
