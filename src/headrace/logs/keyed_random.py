"""Stateless random draws: functions of a key (seed, hour, row, ...), which makes them repeatable."""

from __future__ import annotations

import numpy as np

from headrace.compiling import kernel

__all__ = ["derive", "gaussian", "mix", "uniform"]


@kernel()
def mix(key: np.uint64) -> np.uint64:
    """64 well-mixed bits of a key (the finaliser of splitmix64)."""
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.uint64(key ^ (key >> np.uint64(31)))


@kernel()
def derive(key: np.uint64, what: int) -> np.uint64:
    """Derive a sub-key: `derive(session, row)`, `derive(row, column)`."""
    return mix(key + np.uint64(what) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x632BE59BD9B4E019))


@kernel()
def uniform(bits: np.uint64) -> float:
    """A number in [0, 1) from the upper 53 bits."""
    return float(np.int64(bits >> np.uint64(11)) * (1.0 / 9007199254740992.0))


@kernel()
def gaussian(bits: np.uint64) -> float:
    """A nearly normal number with mean 0 and variance 1, from the sum of four 16-bit parts."""
    mask = np.uint64(0xFFFF)
    total = np.int64(bits & mask) + np.int64((bits >> np.uint64(16)) & mask)
    total += np.int64((bits >> np.uint64(32)) & mask) + np.int64(bits >> np.uint64(48))
    # Four uniforms have mean 2 and variance 4 / 12.
    return float((total * (1.0 / 65535.0) - 2.0) * 1.7320508075688772)
