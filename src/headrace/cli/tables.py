"""Tables of results as text, for terminals and pipes."""

from __future__ import annotations

import math
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence

from headrace.observe.metrics import QualityColumn, quality_columns
from headrace.observe.run_data import RunData
from headrace.training import Scores, WindowResult

__all__ = ["WindowTable", "run_table", "scores_table", "text_table", "window_table", "wrapped"]

RATE, CALIBRATION = ("label_rate", "rate", ".4f"), ("calibration", "calibration", ".4f")
MEAN, BIAS = ("label_mean", "mean", ".5g"), ("bias", "bias", ".3g")

USUAL_WIDTHS = (20, 11, 5, 9, 6, 8, 6, 7, 12)
"""Minimum column widths of the window table, whose later lines are not known yet."""


def wrapped(text: str, *, indent: int = 0, width: int | None = None) -> str:
    """A paragraph as lines with an indent: at most as wide as the terminal, or one line in pipes and log files.

    Args:
        text: The paragraph.
        indent: Spaces before each line.
        width: Characters per line; None for those of the terminal.
    """
    if width is None and sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
    if width is None:
        return " " * indent + text
    spaces = " " * indent
    return textwrap.fill(
        text, width, initial_indent=spaces, subsequent_indent=spaces, break_long_words=False, break_on_hyphens=False
    )


def text_table(header: Sequence[str], rows: Iterable[Sequence[str]], total: Sequence[str] | None = None) -> str:
    """Format a table with the first column left-aligned, the others right-aligned, and a total below a rule."""
    table = [list(header), *(list(row) for row in rows), *([] if total is None else [list(total)])]
    widths = [max(len(row[place]) for row in table) for place in range(len(header))]
    lines = [_line(row, widths) for row in table]
    rule = _rule(widths)
    below = [] if total is None else [rule, lines.pop()]
    return "\n".join([lines[0], rule, *lines[1:], *below])


def window_table(windows: Sequence[WindowResult]) -> str:
    """A table with one line per window (rows, speed, metrics of the first label before training) and a total."""
    bounded = any(window.best_ne is not None for window in windows)
    compared = any(not math.isnan(window.baseline_auc) for window in windows)
    rows = [_window_cells(window, bounded=bounded, compared=compared) for window in windows]
    total = _run_cells(windows[-1], bounded=bounded, compared=compared) if windows else None
    header = _window_header(
        _columns_of(windows[-1]) if windows else quality_columns(False), bounded=bounded, compared=compared
    )
    return text_table(header, rows, total)


def run_table(run: RunData) -> str:
    """The same table of a run folder; "" before its first window is finished."""
    whole = run.whole()
    if whole is None:
        return ""
    bounded = math.isfinite(run.mean_of_windows("best_ne"))
    compared = math.isfinite(run.mean_of_windows("baseline_auc"))
    extra = [("best_ne", ".4f")] * bounded + [("baseline_auc", ".4f")] * compared
    keys, formats = zip(*((key, form) for key, _, form in run.quality_columns), *extra, strict=True)

    def cells(name: str, rows: float, bad: float, rows_per_s: float, metrics: Iterable[float]) -> list[str]:
        counts = [f"{value:,.0f}" if math.isfinite(value) else "-" for value in (rows, bad, rows_per_s)]
        shown = zip(metrics, formats, strict=True)
        return [name, *counts, *(f"{value:{form}}" if math.isfinite(value) else "" for value, form in shown)]

    lines = []
    for span in run.windows:
        bad = sum(value for key in ("dropped", "quarantined") if math.isfinite(value := span.value(key)))
        metrics = [span.value(key) for key in keys]
        lines.append(cells(span.name, span.value("rows"), bad, span.value("rows_per_s"), metrics))
    total = None
    if len(lines) > 1:
        name = "mean of windows" if whole.is_mean else "whole run"
        metrics = [getattr(whole, key, math.nan) for key in keys]
        total = cells(name, whole.rows, whole.bad, whole.rows_per_s, metrics)
    return text_table(_window_header(run.quality_columns, bounded=bounded, compared=compared), lines, total)


class WindowTable:
    """The window table, printed line by line as windows end; columns only grow wider.

    The first window determines the columns.
    """

    def __init__(self) -> None:
        self._widths: list[int] = []
        self._bounded = self._compared = False

    def lines(self, window: WindowResult) -> list[str]:
        """The line of a finished window; the first one includes the header."""
        is_first = not self._widths
        if is_first:
            self._bounded, self._compared = window.best_ne is not None, not math.isnan(window.baseline_auc)
        header = _window_header(_columns_of(window), bounded=self._bounded, compared=self._compared)
        cells = _window_cells(window, bounded=self._bounded, compared=self._compared)
        before = self._widths or [max(len(title), width) for title, width in zip(header, USUAL_WIDTHS, strict=False)]
        self._widths = [max(len(cell), width) for cell, width in zip(cells, before, strict=True)]
        above = [_line(header, self._widths), _rule(self._widths)] if is_first else []
        return [*above, _line(cells, self._widths)]

    def total(self, last: WindowResult) -> list[str]:
        """The lines that close the table, after its last window; none if the run has no other rows."""
        cells = _run_cells(last, bounded=self._bounded, compared=self._compared)
        return [] if cells is None else [_rule(self._widths), _line(cells, self._widths)]


def _run_cells(last: WindowResult, *, bounded: bool, compared: bool) -> list[str] | None:
    """The line of a whole run up to the end of its last window; None if that is all there is."""
    run = last.run
    if run is None or run.rows.num_used == last.rows.num_used:
        return None
    scores = next(iter(run.scores.values()))
    return [
        "whole run",
        f"{run.rows.num_used:,}",
        f"{run.rows.num_bad:,}",
        f"{run.rows_per_s:,.0f}",
        *_cells(scores, scores.columns),
        *[""] * bounded,
        *["" if math.isnan(run.baseline_auc) else f"{run.baseline_auc:.4f}"] * compared,
    ]


def _columns_of(window: WindowResult) -> tuple[QualityColumn, ...]:
    return next(iter(window.scores.values())).columns


def _cells(scores: Scores, columns: Iterable[QualityColumn]) -> list[str]:
    return [f"{getattr(scores, name):{form}}" for name, _, form in columns]


def _window_header(columns: Sequence[QualityColumn], *, bounded: bool, compared: bool) -> list[str]:
    header = ["window", "rows", "bad", "rows/s", *(title for _, title, _ in columns)]
    return header + ["best NE"] * bounded + ["baseline AUC"] * compared


def _window_cells(window: WindowResult, *, bounded: bool, compared: bool) -> list[str]:
    scores = next(iter(window.scores.values()))
    extra = ["" if window.best_ne is None else f"{window.best_ne:.4f}"] * bounded
    extra += [f"{window.baseline_auc:.4f}"] * compared
    return [
        window.name,
        f"{window.rows.num_used:,}",
        f"{window.rows.num_bad:,}",
        f"{window.rows_per_s:,.0f}",
        *_cells(scores, scores.columns),
        *extra,
    ]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    pairs = zip(cells, widths, strict=True)
    text = "  ".join(
        cell.ljust(width) if place == 0 else cell.rjust(width) for place, (cell, width) in enumerate(pairs)
    )
    return text.rstrip()


def _rule(widths: Sequence[int]) -> str:
    return "  ".join("-" * width for width in widths)


def scores_table(scores: dict[str, Scores]) -> str:
    """A table with one line per label; binary labels and numbers have a table each."""
    tables = []
    for is_regression, level, last in ((False, RATE, CALIBRATION), (True, MEAN, BIAS)):
        columns = (level, *quality_columns(is_regression), last)
        header = ["label", "rows", *(title for _, title, _ in columns)]
        rows = [
            [name, f"{of.rows:,}", *_cells(of, columns)]
            for name, of in scores.items()
            if of.is_regression == is_regression
        ]
        if rows:
            tables.append(text_table(header, rows))
    return "\n\n".join(tables)
