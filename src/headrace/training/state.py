"""`TrainingState`: the progress of a run; a checkpoint holds it with the parameters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.logs import Cursor, Window
from headrace.models.products import Precision
from headrace.pipeline import RowStats
from headrace.training.metrics import BinaryMetrics, LabelMetrics, metrics_of
from headrace.training.process_group import ProcessGroup

__all__ = ["TrainingState"]


@dataclass
class TrainingState:
    """The progress of a run.

    Attributes:
        label_names: Names of the labels, in the order of the metrics.
        is_regression: Which of the labels are numbers; empty if none is.
        checkpoint: Number of the newest checkpoint; 0 before the first.
        step: Number of optimizer steps.
        precision: Precision of matrix products, once decided.
        schedule: The learning-rate schedule as plain values; None without one.
        cursor: Rows used by finished windows.
        window: The window in progress, or None between windows.
        position: Position of the next batch in that window, see `BatchIterator.state_dict`; None at its start.
        replayed: Quarantine files that were replayed.
        published: Where the publications of the run were at the last commit, see `publishing.forgotten.Cursor`; None
            without any.
        rows: Statistics of all rows so far.
        window_rows: Statistics of the rows of the window in progress.
        seconds: Time spent training so far.
        window_seconds: Time spent training on the window in progress.
        running: Metrics over all rows so far, one per label.
        in_window: Metrics over the window in progress, one per label.
        baseline: Metrics of the baseline feature over the window in progress, as if it were a logit of the first label.
        baseline_name: The baseline feature; None without one.
        running_baseline: Metrics of that feature over all rows so far; None if they are not known of all rows, because
            earlier ones had another baseline.
    """

    label_names: tuple[str, ...]
    is_regression: tuple[bool, ...] = ()
    checkpoint: int = 0
    step: int = 0
    precision: Precision | None = None
    schedule: dict[str, Any] | None = None
    cursor: Cursor = field(default_factory=Cursor)
    window: Window | None = None
    position: dict[str, Any] | None = None
    replayed: tuple[str, ...] = ()
    published: dict[str, Any] | None = None
    rows: RowStats = field(default_factory=RowStats)
    window_rows: RowStats = field(default_factory=RowStats)
    seconds: float = 0.0
    window_seconds: float = 0.0
    running: dict[str, LabelMetrics] = field(default_factory=dict)
    in_window: dict[str, LabelMetrics] = field(default_factory=dict)
    baseline: BinaryMetrics = field(default_factory=BinaryMetrics)
    baseline_name: str | None = None
    running_baseline: BinaryMetrics | None = field(init=False)

    def __post_init__(self) -> None:
        self.running = self._new_metrics()
        self.in_window = self._new_metrics()
        self.running_baseline = None if self.baseline_name is None else BinaryMetrics()

    def start_window(self, window: Window) -> None:
        """Start a window; `window` must be None."""
        self.window = window
        self.start_stretch()

    def start_stretch(self) -> None:
        """Reset the counts and metrics of the window in progress."""
        self.position = None
        self.window_rows, self.window_seconds = RowStats(), 0.0
        self.in_window = self._new_metrics()
        self.baseline = BinaryMetrics()

    def finish_window(self) -> None:
        """Mark the window in progress as used."""
        assert self.window is not None
        self.cursor, self.window, self.position = self.window.cursor_after, None, None

    def count(self, rows: RowStats, seconds: float) -> None:
        """Add the rows and the time of a step."""
        rows = rows.counts()
        self.rows += rows
        self.window_rows += rows
        self.seconds += seconds
        self.window_seconds += seconds

    def gather(self, process_group: ProcessGroup) -> None:
        """Sum the counts of all trainers on trainer 0, and reset them on the others.

        Each trainer counts only its own rows.
        """
        if process_group.size == 1:
            return
        metrics = [*self.running.values(), *self.in_window.values(), self.baseline]
        metrics += [] if self.running_baseline is None else [self.running_baseline]
        states = [metric.state_dict() for metric in metrics]
        counts = [np.array([*rows.to_dict().values()], np.float64) for rows in (self.rows, self.window_rows)]
        arrays = [array for state in states for array in state.values()]
        totals = process_group.total([*counts, *arrays])
        if process_group.rank:
            self.forget_counts()
            return
        self.rows, self.window_rows = (
            RowStats.from_dict(dict(zip(rows.to_dict(), total, strict=True)))
            for rows, total in zip((self.rows, self.window_rows), totals, strict=False)
        )
        sums = iter(totals[2:])
        for metric, state in zip(metrics, states, strict=True):
            metric.load_state_dict({key: next(sums) for key in state})

    def forget_counts(self) -> None:
        """Reset all counts and metrics."""
        self.rows, self.window_rows, self.baseline = RowStats(), RowStats(), BinaryMetrics()
        self.running_baseline = None if self.running_baseline is None else BinaryMetrics()
        self.running = self._new_metrics()
        self.in_window = self._new_metrics()

    def _new_metrics(self) -> dict[str, LabelMetrics]:
        numbers = self.is_regression or (False,) * len(self.label_names)
        return {name: metrics_of(number) for name, number in zip(self.label_names, numbers, strict=True)}

    def update_metrics(
        self, logits: NDArray[np.float32], labels: NDArray[np.float32], weights: NDArray[np.float32] | None
    ) -> None:
        """Add a batch's predictions: logits and labels float32 [B, L], weights float32 [B] or None."""
        for place, name in enumerate(self.label_names):
            for metrics in (self.running[name], self.in_window[name]):
                metrics.update(logits[:, place], labels[:, place], weights)

    def update_baseline(
        self, values: NDArray[np.float32], labels: NDArray[np.float32], weights: NDArray[np.float32] | None
    ) -> None:
        """Add a batch of the baseline feature and of the first label: float32 [B] each, weights float32 [B] or None."""
        for metrics in (self.baseline, self.running_baseline):
            if metrics is not None:
                metrics.update(values, labels, weights)
