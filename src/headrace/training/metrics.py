"""Metrics of labels in constant memory: `BinaryMetrics` of clicks, `RegressionMetrics` of numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from headrace.auc import area_under_curve
from headrace.compiling import kernel
from headrace.observe.metrics import BINARY_METRICS, REGRESSION_METRICS, QualityColumn, quality_columns

__all__ = ["BinaryMetrics", "LabelMetrics", "RegressionMetrics", "Scores", "metrics_of"]

NUM_BINS = 1 << 15
MAX_LOGIT = 16.0
"""Logits beyond +-16 (probabilities within 1.2e-7 of 0 or 1) share the outermost bins."""


@dataclass(frozen=True)
class Scores:
    """Metrics over some rows; NaN where undefined: no rows, only one class, or a label of the other kind.

    Attributes:
        rows: Number of rows.
        auc: Area under the ROC curve.
        auc_error: Error bound: the exact AUC is within `auc +- auc_error`.
        log_loss: Mean negative log likelihood in nats.
        ne: Normalised entropy: log loss over the entropy of the label rate of the same rows (He et al., ADKDD 2014,
            section 2.1); below 1 is better than always predicting the label rate.
        calibration: Mean prediction divided by label rate; 1 is perfect.
        label_rate: Weighted share of positive rows.
        ne_error: Standard error of `ne` if rows are independent, see `BinaryMetrics`.
        rmse: Root of the mean squared error of a number, in its unit.
        mae: Mean absolute error.
        relative_mse: Mean squared error over the variance of the same rows' labels (1 - R^2); below 1 is better than
            always predicting the mean.
        bias: Mean prediction minus mean label.
        label_mean: Weighted mean of the label.
        is_regression: Whether the label is a number.
    """

    rows: int
    auc: float
    auc_error: float
    log_loss: float
    ne: float
    calibration: float
    label_rate: float
    ne_error: float = math.nan
    rmse: float = math.nan
    mae: float = math.nan
    relative_mse: float = math.nan
    bias: float = math.nan
    label_mean: float = math.nan
    is_regression: bool = False

    @property
    def columns(self) -> tuple[QualityColumn, ...]:
        """The columns that tables of results have for this kind of label."""
        return quality_columns(self.is_regression)

    def metrics(self) -> dict[str, float]:
        """The metrics of this kind of label by name, as in `metrics.jsonl`."""
        names = REGRESSION_METRICS if self.is_regression else (*BINARY_METRICS, "ne_error")
        return {name: getattr(self, name) for name in names}

    def level(self) -> dict[str, float]:
        """The rate or mean of the label by name, as in `metrics.jsonl`."""
        return {"label_mean": self.label_mean} if self.is_regression else {"label_rate": self.label_rate}

    def to_dict(self) -> dict[str, Any]:
        """All values of this kind of label, for JSON."""
        error = {} if self.is_regression else {"auc_error": self.auc_error}
        return {"rows": self.rows, **self.metrics(), **error, **self.level()}


class LabelMetrics(Protocol):
    """Accumulates the metrics of one label."""

    def update(
        self, outputs: NDArray[np.float32], labels: NDArray[np.float32], weights: NDArray[np.float32] | None = None, /
    ) -> None:
        """Add rows.

        Args:
            outputs: float32 [B], logits or predicted values.
            labels: float32 [B]; rows without the label (NaN) are ignored.
            weights: float32 [B] example weights, or None for all ones.
        """

    def merge(self, other: Any, /) -> None:
        """Add the rows of another instance."""

    def compute(self) -> Scores:
        """The metrics of all rows so far."""
        ...

    def state_dict(self) -> dict[str, NDArray[np.float64]]:
        """The sums as arrays, which add up over trainers; for a checkpoint."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the result of `state_dict`."""


def metrics_of(is_regression: bool) -> LabelMetrics:
    """New metrics for a label of this kind."""
    return RegressionMetrics() if is_regression else BinaryMetrics()


class BinaryMetrics:
    """Accumulates metrics of one binary label in constant memory (512 KiB).

    AUC counts rows in 32,768 bins of equal width in the logit. Pairs of a positive and a negative row in different bins
    are ordered exactly, and pairs in the same bin count one half. So the error is at most half the share of pairs in
    the same bin; `Scores.auc_error` is this bound for the rows seen.

    Normalised entropy is a ratio of two means over the same rows: of their losses, and of what the label rate loses on
    them. `Scores.ne_error` is the standard error of such a ratio (the delta method, as in Cochran, *Sampling
    Techniques*, 1977, section 2.11), computed from the bins. Rows count alike in it, whatever their weights.
    """

    def __init__(self) -> None:
        self._bins: NDArray[np.float64] = np.zeros((2, NUM_BINS))
        # rows, and sums of weights, weighted labels, weighted predictions and weighted loss
        self._sums: NDArray[np.float64] = np.zeros(5)

    def update(
        self, logits: NDArray[np.float32], labels: NDArray[np.float32], weights: NDArray[np.float32] | None = None
    ) -> None:
        """Add rows.

        Args:
            logits: float32 [B].
            labels: float32 [B], 0 or 1; rows without the label (NaN) are ignored.
            weights: float32 [B] example weights, or None for all ones.
        """
        if weights is None:
            weights = np.ones(len(logits), dtype=np.float32)
        _accumulate(logits, labels, weights, self._bins, self._sums)

    def merge(self, other: BinaryMetrics) -> None:
        """Add the rows of another instance."""
        self._bins += other._bins
        self._sums += other._sums

    def compute(self) -> Scores:
        """The metrics of all rows so far."""
        rows, weight, positives, predicted, loss = self._sums.tolist()
        if weight <= 0:
            return Scores(int(rows), *(math.nan,) * 6)
        rate = positives / weight
        entropy = -rate * math.log(rate) - (1 - rate) * math.log(1 - rate) if 0 < rate < 1 else math.nan
        auc, tied = area_under_curve(*self._bins)
        return Scores(
            rows=int(rows),
            auc=auc,
            auc_error=0.5 * tied,
            log_loss=loss / weight,
            ne=loss / weight / entropy,
            calibration=predicted / positives if positives > 0 else math.nan,
            label_rate=rate,
            ne_error=_ne_error(self._bins, rows),
        )

    def state_dict(self) -> dict[str, NDArray[np.float64]]:
        """The counts as arrays, for a checkpoint."""
        return {"bins": self._bins.copy(), "sums": self._sums.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load counts saved by `state_dict`."""
        self._bins[:] = state["bins"]
        self._sums[:] = state["sums"]


class RegressionMetrics:
    """Accumulates metrics of one label that is a number, as sums."""

    def __init__(self) -> None:
        # rows, and sums of weights, weighted labels, their squares, predictions, absolute errors and squared errors
        self._sums: NDArray[np.float64] = np.zeros(7)

    def update(
        self, outputs: NDArray[np.float32], labels: NDArray[np.float32], weights: NDArray[np.float32] | None = None
    ) -> None:
        """Add rows.

        Args:
            outputs: float32 [B], predicted values; rows without one (NaN) are ignored.
            labels: float32 [B]; rows without the label (NaN) are ignored.
            weights: float32 [B] example weights, or None for all ones.
        """
        known = ~(np.isnan(outputs) | np.isnan(labels))
        predicted, actual = outputs[known].astype(np.float64), labels[known].astype(np.float64)
        w = np.ones(len(actual)) if weights is None else weights[known].astype(np.float64)
        errors = predicted - actual
        sums = [w.sum(), w @ actual, w @ actual**2, w @ predicted, w @ np.abs(errors), w @ errors**2]
        self._sums += np.array([len(actual), *sums])

    def merge(self, other: RegressionMetrics) -> None:
        """Add the rows of another instance."""
        self._sums += other._sums

    def compute(self) -> Scores:
        """The metrics of all rows so far."""
        rows, weight, *sums = self._sums.tolist()
        nothing = (math.nan,) * 6
        if weight <= 0:
            return Scores(int(rows), *nothing, is_regression=True)
        label, squares, predicted, absolute, squared = (value / weight for value in sums)
        variance = squares - label**2
        return Scores(
            int(rows),
            *nothing,
            rmse=math.sqrt(squared),
            mae=absolute,
            relative_mse=squared / variance if variance > 0 else math.nan,
            bias=predicted - label,
            label_mean=label,
            is_regression=True,
        )

    def state_dict(self) -> dict[str, NDArray[np.float64]]:
        """The sums as an array, for a checkpoint."""
        return {"sums": self._sums.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load sums saved by `state_dict`."""
        self._sums[:] = state["sums"]


def _ne_error(bins: NDArray[np.float64], rows: float) -> float:
    """Standard error of the normalised entropy of a number of rows, from their weights per bin."""
    of_class = bins.sum(axis=1, keepdims=True)
    weight = float(of_class.sum())
    if not of_class.all():
        return math.nan
    losses, losses_of_rate = _losses_of_bins(), -np.log(of_class / weight)
    entropy = float((of_class * losses_of_rate).sum()) / weight
    ne = float((bins * losses).sum()) / weight / entropy
    variance = float((bins * (losses - ne * losses_of_rate) ** 2).sum()) / weight
    return math.sqrt(variance / rows) / entropy


@cache
def _losses_of_bins() -> NDArray[np.float64]:
    """Log loss of a negative (row 0) and a positive (row 1) in the middle of each bin."""
    logits = (np.arange(NUM_BINS) + 0.5) * (2 * MAX_LOGIT / NUM_BINS) - MAX_LOGIT
    return np.logaddexp(0.0, np.stack([logits, -logits]))


@kernel()
def _accumulate(
    logits: NDArray[np.float32],
    labels: NDArray[np.float32],
    weights: NDArray[np.float32],
    bins: NDArray[np.float64],
    sums: NDArray[np.float64],
) -> None:
    scale = NUM_BINS / (2 * MAX_LOGIT)
    for row in range(len(logits)):
        logit, label, weight = float(logits[row]), float(labels[row]), float(weights[row])
        if label != label:
            continue
        # NaN compares false with everything; it must not become an index.
        place = int(min(max((logit + MAX_LOGIT) * scale, 0.0), NUM_BINS - 1.0)) if logit == logit else 0
        bins[1 if label > 0.5 else 0, place] += weight
        # log(1 + exp(-|x|)) never overflows; the loss is softplus(x) - label * x.
        loss = math.log1p(math.exp(-abs(logit))) + max(logit, 0.0) - label * logit
        sums[0] += 1.0
        sums[1] += weight
        sums[2] += weight * label
        sums[3] += weight / (1.0 + math.exp(-logit))
        sums[4] += weight * loss
