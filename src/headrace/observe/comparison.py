"""Compares two runs: settings that differ, and metrics by window."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from headrace.messages import shorten, to_json
from headrace.observe.run_data import RunData, WholeRun, WindowSpan

__all__ = ["Comparison", "compare_runs"]

WHOLE = "whole run"

NOT_COMPARED = ("run",)
"""Settings that do not affect training."""


@dataclass(frozen=True)
class Comparison:
    """A comparison of two runs.

    Attributes:
        settings: Keys of the job that differ, with their values in the first and the second run as text; "-" if
            missing.
        windows: Window names, with this window of each run; None if a run does not have it.
        whole: Both runs over all rows; None before the first window.
    """

    settings: list[tuple[str, str, str]]
    windows: list[tuple[str, WindowSpan | None, WindowSpan | None]]
    whole: tuple[WholeRun | None, WholeRun | None]

    def window_rows(self) -> list[list[str]]:
        """One row per window, and one for all: name, then rows, AUC, NE and rows/s of the first and the second run."""
        rows = [[name, *_cells(first, second)] for name, first, second in self.windows]
        return [*rows, [WHOLE, *_cells(*self.whole)]] if all(self.whole) else rows

    def verdict(self) -> str:
        """One line that compares the second run with the first, over all rows."""
        first, second = self.whole
        if first is None or second is None:
            return "a run without a finished window cannot be compared"
        if first.rows != second.rows:
            return f"not the same rows: {first.rows:,.0f} and {second.rows:,.0f}; compare windows that both have"
        changes = [_change("NE", second.ne - first.ne), _change("AUC", second.auc - first.auc)]
        speed = second.rows_per_s / first.rows_per_s
        changes += [f"{speed:.2f}x the rows/s"] if math.isfinite(speed) else []
        return f"run 2 against run 1, over all rows: {', '.join(changes)}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        names = ("rows", "auc", "log_loss", "ne", "calibration", "rows_per_s")

        def values(one: WindowSpan | WholeRun | None) -> dict[str, float] | None:
            if one is None:
                return None
            return {name: one.value(name) if isinstance(one, WindowSpan) else getattr(one, name) for name in names}

        return {
            "settings": {key: [first, second] for key, first, second in self.settings},
            "windows": {name: [values(first), values(second)] for name, first, second in self.windows},
            "whole_run": [values(run) for run in self.whole],
        }


def compare_runs(first: RunData, second: RunData) -> Comparison:
    """Compare two runs; windows are matched by name."""
    a, b = first.settings(), second.settings()
    keys = [key for key in dict.fromkeys([*a, *b]) if key not in NOT_COMPARED]
    settings = [(key, _text(a, key), _text(b, key)) for key in keys if a.get(key) != b.get(key)]
    in_first, in_second = ({span.name: span for span in run.windows} for run in (first, second))
    windows = [(name, in_first.get(name), in_second.get(name)) for name in dict.fromkeys([*in_first, *in_second])]
    return Comparison(settings, windows, (first.whole(), second.whole()))


def _text(settings: dict[str, Any], key: str) -> str:
    if key not in settings:
        return "-"
    value = settings[key]
    return shorten(value if isinstance(value, str) else to_json(value), 60)


def _cells(first: WindowSpan | WholeRun | None, second: WindowSpan | WholeRun | None) -> list[str]:
    def cell(one: WindowSpan | WholeRun | None, name: str, digits: int) -> str:
        value = math.nan if one is None else one.value(name) if isinstance(one, WindowSpan) else getattr(one, name)
        return f"{value:,.{digits}f}" if math.isfinite(value) else "-"

    names = (("rows", 0), ("auc", 4), ("ne", 4), ("rows_per_s", 0))
    return [cell(one, name, digits) for name, digits in names for one in (first, second)]


def _change(name: str, change: float) -> str:
    if not math.isfinite(change):
        return f"{name} not known"
    if abs(change) < 5e-5:
        return f"{name} the same"
    return f"{name} {abs(change):.4f} {'higher' if change > 0 else 'lower'}"
