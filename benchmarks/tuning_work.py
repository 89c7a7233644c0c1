"""The work of `bench_tuning.py --real`: delayed reads, decompression, a user function in Python, and a trainer.

An element is a file of 512 samples. Reading is delayed as if the store were remote. Decoding and features run in C
without the GIL; the user function is plain Python and holds it. All functions take and return bytes, so that every
loader can call them.
"""

from __future__ import annotations

import tempfile
import time
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from fsspec.implementations.local import LocalFileSystem

__all__ = ["DelayedFileSystem", "Trainer", "decode", "features", "prepare", "read", "user_function"]

NUM_FILES = 16
SAMPLES, COLUMNS = 512, 256
READ_S = 0.03
USER_STEPS = 30_000


class DelayedFileSystem(LocalFileSystem):  # type: ignore[misc]
    """Local files, each read of which is delayed by `READ_S`, as from a remote store."""

    cachable = False

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """Return the bytes of a file after the delay."""
        time.sleep(READ_S)
        return Path(path).read_bytes()


def prepare(folder: Path) -> None:
    """Write the compressed files of all elements."""
    random = np.random.default_rng(0)
    for number in range(NUM_FILES):
        values = random.integers(0, 64, (SAMPLES, COLUMNS)).astype(np.float32)
        (folder / f"{number}.z").write_bytes(zlib.compress(values.tobytes(), 1))


def temporary() -> tempfile.TemporaryDirectory[str]:
    """Return a temporary folder, in memory if possible, so that disks have no effect."""
    shared = Path("/dev/shm")
    return tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None)


@cache
def _files() -> DelayedFileSystem:
    return DelayedFileSystem()


def read(folder: str, number: int) -> bytes:
    """Read the compressed file of an element."""
    return bytes(_files().cat_file(f"{folder}/{number % NUM_FILES}.z"))


def decode(compressed: bytes) -> bytes:
    """Decompress a file: float32 [SAMPLES, COLUMNS] as bytes."""
    return zlib.decompress(compressed)


def user_function(values: bytes) -> bytes:
    """Run a loop in plain Python, like many user functions; it changes one value, so no loader can skip it."""
    total = 0
    for i in range(USER_STEPS):
        total = (total * 31 + values[(i * 4 + 3) % len(values)]) & 0xFFFF
    return np.float32(total).tobytes() + values[4:]


def features(values: bytes) -> bytes:
    """Return the clipped logarithms of the values, less their mean in each row."""
    array = np.frombuffer(values, np.float32).reshape(SAMPLES, COLUMNS)
    array = np.clip(np.log1p(array), 0.0, 8.0)
    return np.ascontiguousarray(array - array.mean(axis=1, keepdims=True)).tobytes()


class Trainer:
    """A small model that takes a few milliseconds per batch on one thread."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)
        self._torch = torch
        generator = torch.Generator().manual_seed(0)
        self._first = torch.rand(COLUMNS, 256, generator=generator)
        self._second = torch.rand(256, 1, generator=generator)

    def step(self, batch: bytes) -> float:
        """Run the model and return the sum of its outputs."""
        x = self._torch.frombuffer(bytearray(batch), dtype=self._torch.float32).view(SAMPLES, COLUMNS)
        return float((self._torch.relu(x @ self._first) @ self._second).sum())
