"""Parses and formats sizes in bytes: "4GiB", "512 MB", "1.5g"."""

import math
import re

from headrace.errors import ConfigError

__all__ = ["format_bytes", "parse_bytes"]

_UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
_PATTERN = re.compile(r"\s*(?P<number>\d+(\.\d*)?|\.\d+)\s*(?P<prefix>[kmgtp]?)(?P<kind>i?b?)\s*", re.IGNORECASE)


def parse_bytes(size: int | float | str, *, where: str = "size") -> int:
    """Parse a size to bytes.

    `KiB, MiB, ...` and single letters `k, m, ...` are powers of 1024 (as in cgroups and Kubernetes' `Ki`); `kB, MB,
    ...` are powers of 1000.

    Args:
        size: A number of bytes, or text such as "4GiB".
        where: Name of the size in error messages.

    Raises:
        ConfigError: It is not a size, or is negative.
    """
    if isinstance(size, int | float) and not isinstance(size, bool) and math.isfinite(size) and size >= 0:
        return int(size)
    match = _PATTERN.fullmatch(size) if isinstance(size, str) else None
    if match is None:
        raise ConfigError(f'{where}: given {size!r}, expected bytes or a size like "4GiB" or "500MB"')
    base = 1000 if match["prefix"] and match["kind"].lower() == "b" else 1024
    return int(float(match["number"]) * base ** ("kmgtp".index(match["prefix"].lower()) + 1 if match["prefix"] else 0))


def format_bytes(num_bytes: float) -> str:
    """Format a size in powers of 1024: 1536 becomes "1.5 KiB"."""
    value = float(num_bytes)
    unit = _UNITS[0]
    for unit in _UNITS:
        if abs(value) < 1024 or unit == _UNITS[-1]:
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" or abs(value) >= 100 else f"{value:.3g} {unit}"
