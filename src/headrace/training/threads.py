"""The thread plan: torch and Numba share the effective CPUs."""

from __future__ import annotations

import numba
import torch

from headrace.resources import effective_cpus

__all__ = ["use_threads"]


def use_threads(num_threads: int | None) -> int:
    """Set how many threads a training step uses, in torch and in Numba.

    Args:
        num_threads: Threads, or None for the effective CPUs of this process (rounded down, at least 1).

    Returns:
        The number of threads now in use.
    """
    if num_threads is None:
        num_threads = max(1, int(effective_cpus().count))
    torch.set_num_threads(num_threads)
    numba.set_num_threads(min(num_threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    return num_threads
