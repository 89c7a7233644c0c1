"""Writes files atomically, with one-line errors; maps arrays."""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import HeadraceError, StorageError

__all__ = ["flush", "map_array", "new_file", "new_folder", "write_array", "write_text", "writing"]

_LIBRARIES = ("pyarrow", "safetensors", "safetensors_rust", "duckdb", "_duckdb")
"""Libraries whose errors wrap system errors, mostly not as `OSError`."""

_OS_ERROR = re.compile(r"(?:os error|errno) (\d+)", re.IGNORECASE)


_parsing = threading.Lock()


def map_array(path: Path) -> NDArray[Any]:
    """Map a `.npy` file into memory, read-only; numeric arrays only, never an archive. Thread-safe.

    NumPy parses the header of the file with `ast`, which raises SystemError in Python 3.11 if two threads are in it.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not a `.npy` file, or not of numbers.
    """
    with _parsing:
        array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
    return array


@contextmanager
def writing(path: str | os.PathLike[str], error: type[HeadraceError] = StorageError) -> Iterator[None]:
    """Convert system errors, including those wrapped by libraries, to a one-line error with a path.

    Args:
        path: The path being written.
        error: Class of the error to raise.
    """
    try:
        yield
    except HeadraceError:
        raise
    except Exception as cause:
        if not isinstance(cause, OSError) and type(cause).__module__.split(".")[0] not in _LIBRARIES:
            raise
        raise error(f"{os.fspath(path)}: cannot be written: {_reason(cause)}") from cause


@contextmanager
def new_file(path: str | os.PathLike[str], error: type[HeadraceError] = StorageError) -> Iterator[Path]:
    """Yield a hidden path next to a file, which is flushed and renamed to the file at the end.

    After an error nothing is left behind, and an existing file is unchanged.

    Raises:
        StorageError: The file cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with writing(path, error):
        try:
            yield partial
            flush(partial)
            partial.replace(path)
            flush(path.parent)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def new_folder(path: str | os.PathLike[str], error: type[HeadraceError] = StorageError) -> Iterator[Path]:
    """Like `new_file`, for a folder that does not exist yet."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with writing(path, error):
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            yield partial
            for folder, _, names in os.walk(partial):
                for name in names:
                    flush(Path(folder, name))
                flush(Path(folder))
            partial.rename(path)
            flush(path.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def write_text(path: str | os.PathLike[str], text: str, error: type[HeadraceError] = StorageError) -> None:
    """Write a UTF-8 text file atomically."""
    with new_file(path, error) as partial:
        partial.write_text(text, encoding="utf-8")


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write an `.npy` file of numbers.

    Raises:
        OSError: The file cannot be written; unlike with `np.save`, the error has the reason.
    """
    with path.open("wb") as file:
        sink: Any = SimpleNamespace(write=file.write)  # with real files, NumPy loses the reason of errors
        np.lib.format.write_array(sink, array, allow_pickle=False)


def flush(path: Path) -> None:
    """Flush a file or a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: BaseException) -> str:
    """The system's reason of an error, even if a library rephrased it."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    text = " ".join(str(error).split())
    code = _OS_ERROR.search(text)
    if code is not None:
        return os.strerror(int(code[1]))
    return text
