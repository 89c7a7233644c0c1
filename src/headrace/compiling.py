"""`kernel`: compiles hot loops with Numba, without the GIL, cached on disk, and with C semantics for division."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, ParamSpec, TypeVar, cast

import numba
from numba.core import caching

from headrace.errors import ConfigError
from headrace.kernel_folders import kernel_folders

IndexDataCacheFile: Any = caching.IndexDataCacheFile
FunctionCache: Any = caching.FunctionCache
CompileResultCacheImpl: Any = caching.CompileResultCacheImpl
SourceFileLocator: Any = caching.UserWideCacheLocator

P = ParamSpec("P")
R = TypeVar("R")


def kernel(
    *, parallel: bool = False, fastmath: bool = False, inline: bool = False
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator that compiles a function of arrays and scalars on its first call.

    The compiled function releases the GIL and is cached on disk, so later processes load it instead of compiling. The
    cache is valid only while the source files of the kernel and of the kernels it calls are unchanged. A function may
    only close over kernels; each function made from such a template needs a unique `__qualname__`.

    Args:
        parallel: Whether `numba.prange` loops use Numba's threads.
        fastmath: Whether floating-point sums may be reassociated. Leave it off if results must be bit-identical.
        inline: Whether the function is always inlined into the kernels that call it. LLVM inlines only small functions
            by itself, and a call that passes several arrays costs as much as the update of a row.

    Raises:
        ConfigError: NUMBA_DISABLE_JIT is set. Python integers do not overflow, so results would differ.
    """

    if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
        raise ConfigError("NUMBA_DISABLE_JIT is set, expected unset: kernels rely on integer overflow")

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        dispatcher = numba.njit(
            function,
            parallel=parallel,
            fastmath=fastmath,
            inline="always" if inline else "never",
            nogil=True,
            error_model="numpy",
        )
        cast(Any, dispatcher)._cache = KernelCache(function)
        return cast(Callable[P, R], dispatcher)

    return decorate


def kernel_of_rule(function: Callable[P, R], rule: Callable[..., Any], *, parallel: bool = False) -> Callable[P, R]:
    """A kernel made from a template that calls a rule, itself a kernel; cached under the names of both."""
    name = f"{function.__name__}_with_{rule.__module__.rpartition('.')[2]}"
    function.__name__ = function.__qualname__ = name
    return kernel(parallel=parallel)(function)


class KernelLocator(SourceFileLocator):  # type: ignore[misc]
    """Tells Numba where compiled kernels are cached; see `kernel_folders`."""

    def __init__(self, function: FunctionType, file: str) -> None:
        self._py_file, self._lineno = file, function.__code__.co_firstlineno
        self.folders = kernel_folders(Path(file).resolve().parent)

    def get_cache_path(self) -> str:
        """The folder to which code is written."""
        return str(self.folders.kept or "")

    def ensure_cache_path(self) -> None:
        """Do nothing: the folder was created when it was chosen."""

    @classmethod
    def from_function(cls, py_func: FunctionType, py_file: str) -> KernelLocator:
        """Create a locator for a kernel."""
        return cls(py_func, py_file)


class KernelCacheImpl(CompileResultCacheImpl):  # type: ignore[misc]
    """Numba's cache interface for kernels."""

    _locator_classes = (KernelLocator,)


class KernelCache(FunctionCache):  # type: ignore[misc]
    """The compiled code of one kernel for all signatures, in the cache and in the installation."""

    _impl_class = KernelCacheImpl

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = cast(FunctionType, function)
        self._files: KernelFiles | None = None
        file = self._function.__code__.co_filename
        _defined[file] = _digest_now(file)
        super().__init__(function)

    @property
    def _cache_file(self) -> KernelFiles:
        # Numba only checks the kernel's own file, and would use code compiled with an outdated callee. Callees can be
        # defined below the kernel, so they are known only when it is called.
        if self._files is None:
            folders, name = self._impl.locator.folders, self._impl.filename_base
            stamp = source_stamp(self._function)
            kept, shipped = (each and KernelFile(str(each), name, stamp) for each in (folders.kept, folders.shipped))
            self._files = KernelFiles(kept, shipped)
        return self._files

    @_cache_file.setter
    def _cache_file(self, files: Any) -> None:
        """Ignore what Numba sets."""

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        # Numba would add the pickled closure. Kernels in it pickle differently in each process. `source_stamp` covers
        # their code, and functions made from one template have unique names.
        return sig, codegen.magic_tuple(), hashlib.sha256(self._py_func.__code__.co_code).hexdigest()


class KernelFiles:
    """The cached and the shipped code of one kernel. Without a folder, code lives as long as the process."""

    def __init__(self, kept: KernelFile | None, shipped: KernelFile | None) -> None:
        self._kept, self._shipped = kept, shipped

    def save(self, key: Any, data: Any) -> None:
        """Save the code of a signature, if there is a folder for it."""
        if self._kept is not None:
            self._kept.save(key, data)

    def load(self, key: Any) -> Any:
        """Load the code of a signature; None if there is none that matches its sources."""
        data = None
        with suppress(OSError):
            data = None if self._kept is None else self._kept.load(key)
        with suppress(OSError):
            if data is None and self._shipped is not None:
                data = self._shipped.load_unlocked(key)
        return data


class KernelFile(IndexDataCacheFile):  # type: ignore[misc]
    """The cache of one kernel: an index of signatures, and a code file for each.

    Several processes may compile at once. Numba's own class lets one process refer to another's code in the index, and
    adds code to the index before it is written. Here a lock serialises reads and writes, and code is written first.
    """

    def save(self, key: Any, data: Any) -> None:
        """Save the code of a signature; if the disk is full, only this process uses it."""
        with suppress(OSError), self._locked():
            kept = self._load_index()
            numbered = (self._data_name(number) for number in range(1, len(kept) + 2))
            name = kept.get(key) or next(name for name in numbered if name not in kept.values())
            self._save_data(name, data)
            self._save_index({**kept, key: name})

    def load(self, key: Any) -> Any:
        """Load the code of a signature; None if there is none that matches its sources."""
        with self._locked():
            return super().load(key)

    def load_unlocked(self, key: Any) -> Any:
        """Load without a lock, from a folder in which none can be created."""
        return super().load(key)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with open(os.path.join(self._cache_path, "kernels.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def source_stamp(function: FunctionType) -> tuple[tuple[str, str], ...]:
    """Name and digest of each source file of the function and of the kernels it calls.

    Modification times are not reliable, because copies and container images lose them.
    """
    files = {f.__code__.co_filename for f in _with_callees(function, set())}
    return tuple((os.path.basename(f), _defined.get(f) or _digest_now(f)) for f in sorted(files))


_defined: dict[str, str] = {}
"""Digests of source files when their kernels were defined: what is compiled, even if a file has changed since."""


def _digest_now(path: str) -> str:
    status = os.stat(path)
    return _digest(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=1024)
def _digest(path: str, changed_ns: int, num_bytes: int) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _with_callees(function: FunctionType, seen: set[str]) -> Iterator[FunctionType]:
    seen.add(function.__qualname__ + function.__module__)
    yield function
    names = function.__code__.co_names
    used = [function.__globals__.get(name) for name in names]
    used += [getattr(module, name, None) for module in used if isinstance(module, ModuleType) for name in names]
    used += [cell.cell_contents for cell in function.__closure__ or ()]
    for each in used:
        callee = getattr(each, "py_func", None)
        if callee is not None and callee.__qualname__ + callee.__module__ not in seen:
            yield from _with_callees(callee, seen)
