"""Compares two runs: settings that differ, and metrics by window."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from headrace.messages import shorten, to_json
from headrace.observe.metrics import BINARY_METRICS, REGRESSION_METRICS, QualityColumn, quality_columns
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
        is_regression: Whether the first label of both runs is a number.
    """

    settings: list[tuple[str, str, str]]
    windows: list[tuple[str, WindowSpan | None, WindowSpan | None]]
    whole: tuple[WholeRun | None, WholeRun | None]
    is_regression: bool = False

    @property
    def _metrics(self) -> tuple[QualityColumn, ...]:
        """The columns about quality: the first and the last of those of one run."""
        first, *_, last = quality_columns(self.is_regression)
        return first, last

    def header(self) -> list[str]:
        """Titles of the columns of `window_rows`."""
        titles = ["rows", *(title for _, title, _ in self._metrics), "rows/s"]
        return ["window", *(f"{title} {run}" for title in titles for run in (1, 2))]

    def window_rows(self) -> list[list[str]]:
        """One row per window, and one for all: name, then rows, two metrics and rows/s of the first and the second
        run."""
        rows = [[name, *self._cells(first, second)] for name, first, second in self.windows]
        return [*rows, [WHOLE, *self._cells(*self.whole)]] if all(self.whole) else rows

    def verdict(self) -> str:
        """One line that compares the second run with the first, over all rows."""
        first, second = self.whole
        if first is None or second is None:
            return "a run without a finished window cannot be compared"
        if first.rows != second.rows:
            return f"not the same rows: {first.rows:,.0f} and {second.rows:,.0f}; compare windows that both have"
        changes = [
            _change(title, getattr(second, name) - getattr(first, name), form)
            for name, title, form in reversed(self._metrics)
        ]
        speed = second.rows_per_s / first.rows_per_s
        changes += [f"{speed:.2f}x the rows/s"] if math.isfinite(speed) else []
        return f"run 2 against run 1, over all rows: {', '.join(changes)}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        names = ("rows", *(REGRESSION_METRICS if self.is_regression else BINARY_METRICS), "rows_per_s")

        def values(one: WindowSpan | WholeRun | None) -> dict[str, float] | None:
            if one is None:
                return None
            return {name: one.value(name) if isinstance(one, WindowSpan) else getattr(one, name) for name in names}

        return {
            "settings": {key: [first, second] for key, first, second in self.settings},
            "windows": {name: [values(first), values(second)] for name, first, second in self.windows},
            "whole_run": [values(run) for run in self.whole],
        }

    def _cells(self, first: WindowSpan | WholeRun | None, second: WindowSpan | WholeRun | None) -> list[str]:
        def cell(one: WindowSpan | WholeRun | None, name: str, form: str) -> str:
            value = math.nan if one is None else one.value(name) if isinstance(one, WindowSpan) else getattr(one, name)
            return f"{value:{form}}" if math.isfinite(value) else "-"

        names = [("rows", ",.0f"), *((name, form) for name, _, form in self._metrics), ("rows_per_s", ",.0f")]
        return [cell(one, name, form) for name, form in names for one in (first, second)]


def compare_runs(first: RunData, second: RunData) -> Comparison:
    """Compare two runs; windows are matched by name."""
    a, b = first.settings(), second.settings()
    keys = [key for key in dict.fromkeys([*a, *b]) if key not in NOT_COMPARED]
    settings = [(key, _text(a, key), _text(b, key)) for key in keys if a.get(key) != b.get(key)]
    in_first, in_second = ({span.name: span for span in run.windows} for run in (first, second))
    windows = [(name, in_first.get(name), in_second.get(name)) for name in dict.fromkeys([*in_first, *in_second])]
    is_regression = first.is_regression and second.is_regression
    return Comparison(settings, windows, (first.whole(), second.whole()), is_regression)


def _text(settings: dict[str, Any], key: str) -> str:
    if key not in settings:
        return "-"
    value = settings[key]
    return shorten(value if isinstance(value, str) else to_json(value), 60)


def _change(name: str, change: float, form: str) -> str:
    if not math.isfinite(change):
        return f"{name} not known"
    if abs(change) < (5e-5 if form == ".4f" else 1e-12):
        return f"{name} the same"
    return f"{name} {abs(change):{form}} {'higher' if change > 0 else 'lower'}"
