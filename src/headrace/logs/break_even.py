"""When storing and computing a value once for several rows pays: the model of RecD (MLSys 2023), in bytes."""

from __future__ import annotations

__all__ = ["INVERSE_BYTES", "MIN_FACTOR", "dedupe_factor", "pays", "saved_bytes"]

MIN_FACTOR = 1.5
"""Rows per unique row from which on a group is kept: below, what is saved goes into looking up which row has what."""

INVERSE_BYTES = 4.0
"""Bytes a row of a group's inverse."""


def dedupe_factor(rows_per_session: float, duplication: float) -> float:
    """Rows per unique row, S / (1 + (S - 1)(1 - d)).

    Args:
        rows_per_session: S, rows of a session side by side.
        duplication: d, share of the rows with a previous row in their session that have its value.
    """
    return rows_per_session / (1.0 + (rows_per_session - 1.0) * (1.0 - duplication))


def saved_bytes(factor: float, row_bytes: float) -> float:
    """Bytes a row that a group saves in memory: its values less those kept, less its inverse. May be negative.

    Args:
        factor: Rows per unique row.
        row_bytes: Bytes of the group's values in a row.
    """
    return row_bytes * (1.0 - 1.0 / factor) - INVERSE_BYTES


def pays(factor: float, row_bytes: float) -> bool:
    """Whether a group is worth keeping as unique rows and inverse."""
    return factor >= MIN_FACTOR and saved_bytes(factor, row_bytes) > 0.0
