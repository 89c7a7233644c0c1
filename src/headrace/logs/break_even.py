"""The break-even model of deduplication, in bytes, after RecD (MLSys 2023)."""

from __future__ import annotations

__all__ = ["INVERSE_BYTES", "MIN_FACTOR", "dedupe_factor", "pays", "saved_bytes"]

MIN_FACTOR = 1.5
"""Minimum rows per unique row of a group; below, the savings are lost to the inverse lookup."""

INVERSE_BYTES = 4.0
"""Bytes per row of a group's inverse."""


def dedupe_factor(rows_per_session: float, duplication: float) -> float:
    """Rows per unique row, S / (1 + (S - 1)(1 - d)).

    Args:
        rows_per_session: S, adjacent rows per session.
        duplication: d, share of rows that repeat the value of their session's previous row, among rows that have one.
    """
    return rows_per_session / (1.0 + (rows_per_session - 1.0) * (1.0 - duplication))


def saved_bytes(factor: float, row_bytes: float) -> float:
    """Bytes per row that a group saves in memory, after subtracting its inverse. May be negative.

    Args:
        factor: Rows per unique row.
        row_bytes: Bytes per row of the group's values.
    """
    return row_bytes * (1.0 - 1.0 / factor) - INVERSE_BYTES


def pays(factor: float, row_bytes: float) -> bool:
    """Whether storing a group as unique rows and inverse pays off."""
    return factor >= MIN_FACTOR and saved_bytes(factor, row_bytes) > 0.0
