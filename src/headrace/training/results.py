"""Results of training, by window and by call."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from headrace.pipeline import RowStats
from headrace.training.metrics import Scores

__all__ = ["RunTotals", "TrainResult", "WindowResult"]


@dataclass(frozen=True)
class RunTotals:
    """Totals of a run over all of its rows so far.

    Attributes:
        rows: Statistics of its rows.
        seconds: Training time in seconds.
        scores: Metrics by label; each row was predicted before it was trained on.
        baseline_auc: AUC of the job's baseline feature; NaN without one, or if earlier rows had another one.
    """

    rows: RowStats
    seconds: float
    scores: dict[str, Scores]
    baseline_auc: float = math.nan

    @property
    def rows_per_s(self) -> float:
        """Rows used per second; 0 if no time has passed."""
        return self.rows.num_used / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class WindowResult:
    """The result of training on one window.

    Attributes:
        name: Name of the window.
        rows: Statistics of its rows.
        seconds: Training time.
        scores: Metrics by label; each row was predicted before it was trained on.
        best_ne: Best normalised entropy that any model can reach, if the logs include it.
        baseline_auc: AUC of the job's baseline feature; NaN without one.
        run: The whole run up to the end of this window; None if unknown.
    """

    name: str
    rows: RowStats
    seconds: float
    scores: dict[str, Scores]
    best_ne: float | None
    baseline_auc: float
    run: RunTotals | None = None

    @property
    def rows_per_s(self) -> float:
        """Rows used per second; 0 if no time has passed."""
        return self.rows.num_used / self.seconds if self.seconds else 0.0

    def summary(self) -> dict[str, float | int | None]:
        """Values for a line about the window, with the metrics of its first label; None for values to omit."""
        scores = next(iter(self.scores.values()))
        bad = self.rows.num_bad or None
        if scores.is_regression:
            return {"bad": bad, **{title: getattr(scores, name) for name, title, _ in scores.columns}}
        return {"bad": bad, "loss": scores.log_loss, "AUC": scores.auc, "NE": scores.ne}

    def to_record(self, *, step: int, time_s: float) -> dict[str, Any]:
        """The record of the window in `metrics.jsonl`; metrics of further labels are named `<metric>_<label>`.

        Args:
            step: Total optimizer steps of the run so far.
            time_s: Total training seconds of the run so far.
        """
        first, *others = self.scores
        record: dict[str, Any] = {
            "kind": "window",
            "window": self.name,
            "step": step,
            "rows": self.rows.num_used,
            "seconds": self.seconds,
            "rows_per_s": self.rows_per_s if self.seconds else None,
            **self.scores[first].metrics(),
            **self.scores[first].level(),
            "best_ne": self.best_ne,
            "baseline_auc": self.baseline_auc,
            "read": self.rows.num_read,
            "filtered": self.rows.num_filtered,
            "dropped": self.rows.num_dropped,
            "quarantined": self.rows.num_quarantined,
            "time_s": time_s,
        }
        for label in others:
            record |= {f"{metric}_{label}": value for metric, value in self.scores[label].metrics().items()}
        if self.run is not None:
            run: dict[str, Any] = {"rows": self.run.rows.num_used, "bad": self.run.rows.num_bad}
            run |= {"seconds": self.run.seconds, "baseline_auc": self.run.baseline_auc}
            for label, scores in self.run.scores.items():
                ending = "" if label == first else f"_{label}"
                run |= {f"{metric}{ending}": value for metric, value in scores.metrics().items()}
            record["run"] = run
        return record


@dataclass(frozen=True)
class TrainResult:
    """The result of a call of `Trainer.run`.

    Attributes:
        windows: Finished windows, in order.
        step: Total optimizer steps of the run so far.
        stopped: Whether it was asked to stop early.
        rest: One line about the data left to train on.
    """

    windows: tuple[WindowResult, ...]
    step: int
    stopped: bool
    rest: str
