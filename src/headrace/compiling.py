"""How hot loops are compiled: Numba without the GIL, cached on disk, with C semantics for division."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FunctionType
from typing import Any, ParamSpec, TypeVar, cast

import numba
from numba.core import caching

IndexDataCacheFile: Any = caching.IndexDataCacheFile

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
        cache, files = dispatcher._cache, dispatcher._cache._impl
        # Numba looks at the kernel's own file only, and would call code compiled from what a callee once was.
        stamp = files.locator.get_source_stamp(), source_stamp(cast(FunctionType, function))
        cache._cache_file = KernelFile(cache.cache_path, files.filename_base, stamp)
        return cast(Callable[P, R], dispatcher)

    return decorate


class KernelFile(IndexDataCacheFile):  # type: ignore[misc]
    """What is kept of one kernel: an index of signatures, and a file of code for each.

    Several processes may compile at once. Numba's own class lets one name the other's code in the index, and names code
    there before it is written; here one process at a time reads or writes, and code is written first.
    """

    def save(self, key: Any, data: Any) -> None:
        """Keep the code of a signature; on a full disk this process uses it, and the next one compiles anew."""
        with suppress(OSError), self._locked():
            kept = self._load_index()
            numbered = (self._data_name(number) for number in range(1, len(kept) + 2))
            name = kept.get(key) or next(name for name in numbered if name not in kept.values())
            self._save_data(name, data)
            self._save_index({**kept, key: name})

    def load(self, key: Any) -> Any:
        """The code of a signature; None if there is none that is as new as its sources."""
        with self._locked():
            return super().load(key)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with open(os.path.join(self._cache_path, "kernels.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


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
