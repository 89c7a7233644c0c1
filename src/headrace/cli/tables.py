"""Tables of results, as text that fits a terminal and a pipe alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from headrace.training import Scores, WindowResult

__all__ = ["WindowTable", "scores_table", "text_table", "window_table"]

USUAL_WIDTHS = (10, 11, 5, 9, 6, 8, 6, 7, 12)
"""Of the columns of windows, where later lines are not known yet: most of them fit."""


def text_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns under their header: the first to the left, numbers to the right."""
    table = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[place]) for row in table) for place in range(len(header))]
    lines = [_line(row, widths) for row in table]
    return "\n".join([lines[0], _rule(widths), *lines[1:]])


def window_table(windows: Sequence[WindowResult]) -> str:
    """One line a window: rows, speed, metrics of its first label before each row was trained on."""
    bounded = any(window.best_ne is not None for window in windows)
    compared = any(not math.isnan(window.baseline_auc) for window in windows)
    rows = [_window_cells(window, bounded=bounded, compared=compared) for window in windows]
    return text_table(_window_header(bounded=bounded, compared=compared), rows)


class WindowTable:
    """The same table line by line, as windows end; a column that a line makes wider stays so for the lines after it.

    Its columns are those of the first window.
    """

    def __init__(self) -> None:
        self._widths: list[int] = []
        self._bounded = self._compared = False

    def lines(self, window: WindowResult) -> list[str]:
        """The line of a window that has ended; the first comes with the header."""
        is_first = not self._widths
        if is_first:
            self._bounded, self._compared = window.best_ne is not None, not math.isnan(window.baseline_auc)
        header = _window_header(bounded=self._bounded, compared=self._compared)
        cells = _window_cells(window, bounded=self._bounded, compared=self._compared)
        before = self._widths or [max(len(title), width) for title, width in zip(header, USUAL_WIDTHS, strict=False)]
        self._widths = [max(len(cell), width) for cell, width in zip(cells, before, strict=True)]
        above = [_line(header, self._widths), _rule(self._widths)] if is_first else []
        return [*above, _line(cells, self._widths)]


def _window_header(*, bounded: bool, compared: bool) -> list[str]:
    header = ["window", "rows", "bad", "rows/s", "AUC", "log loss", "NE"]
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
        f"{scores.auc:.4f}",
        f"{scores.log_loss:.4f}",
        f"{scores.ne:.4f}",
        *extra,
    ]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    pairs = zip(cells, widths, strict=True)
    return "  ".join(
        cell.ljust(width) if place == 0 else cell.rjust(width) for place, (cell, width) in enumerate(pairs)
    )


def _rule(widths: Sequence[int]) -> str:
    return "  ".join("-" * width for width in widths)


def scores_table(scores: dict[str, Scores]) -> str:
    """One line a label."""
    header = ["label", "rows", "rate", "AUC", "log loss", "NE", "calibration"]
    rows = [
        [
            name,
            f"{s.rows:,}",
            f"{s.label_rate:.4f}",
            f"{s.auc:.4f}",
            f"{s.log_loss:.4f}",
            f"{s.ne:.4f}",
            f"{s.calibration:.4f}",
        ]
        for name, s in scores.items()
    ]
    return text_table(header, rows)
