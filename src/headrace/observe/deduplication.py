"""Computes the savings from deduplication in a run, from its records."""

from __future__ import annotations

import numpy as np

from headrace.observe.run_data import RunData

__all__ = ["deduplication_rows"]

_STEPS = (
    ("bytes read from files", "num_plain_read_bytes", "num_read_bytes"),
    ("bytes of rows in flight", "num_plain_row_bytes", "num_row_bytes"),
    ("features computed", "num_plain_values", "num_values"),
    ("ids written and looked up", "num_plain_ids", "num_ids"),
    ("bytes of batches", "num_plain_bytes", "num_bytes"),
    ("FLOP of towers over histories", "num_plain_flop", "num_flop"),
)


def deduplication_rows(data: RunData) -> list[list[str]]:
    """Table rows: quantity, amount without deduplication, amount with it, and the factor; empty if nothing repeated."""
    rows = []
    for step, plain, real in _STEPS:
        before, after = (float(np.nansum(data.column(f"dedup.{name}"))) for name in (plain, real))
        if after:
            rows.append([step, f"{before:,.0f}", f"{after:,.0f}", f"{before / after:.2f}x"])
    return rows if any(row[-1] != "1.00x" for row in rows) else []
