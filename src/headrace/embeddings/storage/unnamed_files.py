"""Files without a name: they vanish with the process, however it ends, so no run finds the files of another."""

from __future__ import annotations

import math
import mmap
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.errors import ConfigError, StorageError

__all__ = ["MappedArray", "UnnamedFile"]

MIB = 1 << 20


class UnnamedFile:
    """An open file in a folder, without a name in it. Several processes may use one folder.

    Args:
        folder: An existing folder.
        direct: Whether to read and write without the operating system's cache, if the file system can do so.

    Raises:
        ConfigError: The folder does not exist, or the process may not write to it.

    Attributes:
        descriptor: File descriptor.
        is_direct: Whether the cache is bypassed; then offsets, sizes and addresses are multiples of 4,096 bytes.
    """

    def __init__(self, folder: str | Path, *, direct: bool = False) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ConfigError(f"embeddings.storage.path: {folder}: no such folder, expected an existing one on an SSD")
        try:
            self.descriptor, name = tempfile.mkstemp(prefix=".headrace-", suffix=".rows", dir=self.folder)
            os.unlink(name)
        except OSError as error:
            raise ConfigError(
                f"embeddings.storage.path: {folder}: {error.strerror}, expected a folder to write to"
            ) from error
        self.is_direct = direct and self._bypass_cache()

    def allocate(self, num_bytes: int) -> None:
        """Make the file at least this long, with its blocks on the disk, so that later writes cannot find it full.

        Raises:
            StorageError: The disk is full.
        """
        size = os.fstat(self.descriptor).st_size
        if num_bytes <= size:
            return
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self.descriptor, size, num_bytes - size)
            else:
                os.ftruncate(self.descriptor, num_bytes)
        except OSError as error:
            raise self._error(error, num_bytes - size) from error

    def truncate(self, num_bytes: int) -> None:
        """Free what is beyond a length."""
        os.ftruncate(self.descriptor, num_bytes)

    def close(self) -> None:
        """Free the file."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            self.close()

    def _error(self, error: OSError, num_bytes: int) -> StorageError:
        free = shutil.disk_usage(self.folder).free
        return StorageError(
            f"{self.folder}: {error.strerror}: rows need {-(-num_bytes // MIB):,} MiB more, {free // MIB:,} MiB are "
            "free; free some, or choose another embeddings.storage.path"
        )

    def _bypass_cache(self) -> bool:
        """Switch to direct access; False where the file system does not have it."""
        import fcntl

        flag = getattr(os, "O_DIRECT", 0)
        try:
            fcntl.fcntl(self.descriptor, fcntl.F_SETFL, fcntl.fcntl(self.descriptor, fcntl.F_GETFL) | flag)
        except OSError:
            return False
        return flag != 0


class MappedArray:
    """An array in an unnamed file, which the operating system pages.

    Args:
        folder: Folder of the file.
        shape: Shape; the first dimension can change.
        dtype: Data type.
        random: Whether rows are read in random order, so that reading ahead only wastes memory.

    Attributes:
        array: The array.
    """

    def __init__(self, folder: str | Path, shape: tuple[int, ...], dtype: npt.DTypeLike, *, random: bool) -> None:
        self._file = UnnamedFile(folder)
        self._dtype, self._row_shape, self._random = np.dtype(dtype), shape[1:], random
        self.array: npt.NDArray[Any] = np.empty((0, *shape[1:]), dtype=dtype)
        self.resize(shape[0])

    def resize(self, num_rows: int) -> None:
        """Change the number of rows; rows in both keep their values, and new ones are zero.

        Raises:
            StorageError: The disk is full.
        """
        num_bytes = num_rows * math.prod(self._row_shape) * self._dtype.itemsize
        shape = num_rows, *self._row_shape
        self.array = np.empty((0, *self._row_shape), dtype=self._dtype)  # lets go of the old mapping
        if num_bytes == 0:
            self.array = np.zeros(shape, dtype=self._dtype)
            return
        self._file.allocate(num_bytes)
        self._file.truncate(num_bytes)
        mapping = mmap.mmap(self._file.descriptor, num_bytes)
        if self._random and hasattr(mmap, "MADV_RANDOM"):
            mapping.madvise(mmap.MADV_RANDOM)
        self.array = np.frombuffer(mapping, dtype=self._dtype).reshape(shape)
