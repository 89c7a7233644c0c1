"""Tables of results, as text that fits a terminal and a pipe alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from headrace.training import Scores, WindowResult

__all__ = ["scores_table", "text_table", "window_table"]


def text_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns under their header: the first to the left, numbers to the right."""
    table = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[place]) for row in table) for place in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) if place == 0 else cell.rjust(width) for place, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in table)
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def window_table(windows: Sequence[WindowResult]) -> str:
    """One line a window: rows, speed, metrics of its first label before each row was trained on."""
    bounded = any(window.best_ne is not None for window in windows)
    compared = any(not math.isnan(window.baseline_auc) for window in windows)
    header = ["window", "rows", "bad", "rows/s", "AUC", "log loss", "NE"]
    header += ["best NE"] * bounded + ["baseline AUC"] * compared
    rows = []
    for window in windows:
        scores = next(iter(window.scores.values()))
        rate = window.rows.used / window.seconds if window.seconds else 0.0
        extra = ["" if window.best_ne is None else f"{window.best_ne:.4f}"] * bounded
        extra += [f"{window.baseline_auc:.4f}"] * compared
        rows.append(
            [
                window.name,
                f"{window.rows.used:,}",
                f"{window.rows.bad:,}",
                f"{rate:,.0f}",
                f"{scores.auc:.4f}",
                f"{scores.log_loss:.4f}",
                f"{scores.ne:.4f}",
                *extra,
            ]
        )
    return text_table(header, rows)


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
