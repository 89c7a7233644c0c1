"""Machine features of InTune's state: memory bandwidth, measured once, and the CPU clock."""

from __future__ import annotations

import time
from functools import cache

import numpy as np
import psutil

__all__ = ["cpu_hz", "memory_bytes_per_s"]

COPIED_BYTES = 32 << 20
"""Larger than most caches; three copies take about 20 ms."""
NUM_COPIES = 3
UNKNOWN_HZ = 3e9


@cache
def memory_bytes_per_s() -> float:
    """Bytes read and written per second by a single-threaded copy, the best of several; measured on the first call."""
    source = np.ones(COPIED_BYTES, np.uint8)
    target = np.zeros_like(source)
    best_s = float("inf")
    for _ in range(NUM_COPIES):
        began = time.perf_counter()
        np.copyto(target, source)
        best_s = min(best_s, time.perf_counter() - began)
    return 2 * COPIED_BYTES / best_s


@cache
def cpu_hz() -> float:
    """Maximum CPU clock if known, else 3 GHz."""
    try:
        clock = psutil.cpu_freq()
    except (OSError, NotImplementedError):
        return UNKNOWN_HZ
    mhz = 0.0 if clock is None else clock.max or clock.current
    return mhz * 1e6 if mhz > 0 else UNKNOWN_HZ
