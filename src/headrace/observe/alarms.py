"""Alarms about a model that is worse than a constant prediction of the label rate or mean, or than the baseline.

Each alarm has a likely reason, derived from the metrics of the windows, and a suggested change.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from headrace.messages import shorten_list
from headrace.observe.run_data import RunData, WholeRun, WindowSpan

__all__ = ["Alarm", "find_alarms"]

NUM_ERRORS = 3.0
"""Standard errors of normalised entropy above 1 that noise can explain. If the truth is 1, one window in 700 exceeds
them."""

UNKNOWN = 0.01
"""Margin for records without a label rate, and of relative squared error."""

NEGLIGIBLE = 0.001
"""Normalised entropy above 1 that does not matter, however many rows show it."""

AUC_MARGIN = 0.005

FEW_STEPS = 200
"""Number of steps below which a model has hardly been trained."""

CHANCE = 0.52
"""AUC below which a model ranks no better than by chance."""

OFF = 1.15
"""Ratio of mean prediction and label rate (or its inverse) above which the level of predictions is wrong."""

RATE_JUMP = 2.0
"""Ratio of the label rates of two windows above which the label rate changes."""


@dataclass(frozen=True)
class Alarm:
    """A problem of a run.

    Attributes:
        what: Description of the problem.
        reason: Likely reason.
        help: Suggested change.
    """

    what: str
    reason: str
    help: str

    def __str__(self) -> str:
        return f"ALARM: {self.what}\n  likely reason: {self.reason}\n  what to change: {self.help}"


def find_alarms(run: RunData) -> list[Alarm]:
    """Find the alarms about a run with at least one finished window, the worst first; empty if there are none."""
    whole = run.whole()
    if whole is None:
        return []
    alarms = list(_worse_than_constant(run, whole))
    auc, baseline = run.auc_and_baseline()
    if baseline > 0.5 and auc < baseline - AUC_MARGIN:
        name = run.job_value("training", "baseline") or "the baseline"
        reason, what = _worse_than_baseline(run, name)
        alarms.append(Alarm(f"AUC {auc:.4f}, below that of {name} alone, {baseline:.4f}", reason, what))
    return alarms


def _worse_than_constant(run: RunData, whole: WholeRun) -> Iterator[Alarm]:
    """An alarm if the model is worse than always predicting the label's rate or mean, over all rows or in a window."""
    if run.is_regression:
        metric, title, constant, explain = "relative_mse", "relative MSE", "mean", _worse_than_mean
    else:
        metric, title, constant, explain = "ne", "NE", "rate", _worse_than_rate
    value = getattr(whole, metric)
    is_worse = value > 1 + _margin(whole.rows, run.mean_of_windows("label_rate"), whole.ne_error)
    worse = [
        span
        for span in run.windows
        if span.value(metric) > 1 + _margin(*(span.value(name) for name in ("rows", "label_rate", "ne_error")))
    ]
    if is_worse or worse:
        names = shorten_list([span.name for span in worse], limit=100)
        where = f"{title} {value:.4f} over all rows" if is_worse else f"{title} above 1 in {names}"
        reason, what = explain(run, worse or run.windows)
        yield Alarm(f"{where}: worse than always predicting the label {constant}", reason, what)


def _margin(rows: float, label_rate: float, ne_error: float) -> float:
    """Normalised entropy above 1 that noise can explain, or relative squared error, which has no label rate.

    Runs by older versions have no standard error. Predictions that differ from the label rate by a little noise, and
    reach a normalised entropy of 1 + x, have one of sqrt(2x / (rows * entropy)); most others have a larger one. So x is
    below `NUM_ERRORS` of them if it is below 2 NUM_ERRORS^2 / (rows * entropy).
    """
    if math.isnan(ne_error):
        if not (0 < label_rate < 1 and rows > 0):
            return UNKNOWN
        entropy = -label_rate * math.log(label_rate) - (1 - label_rate) * math.log(1 - label_rate)
        return max(NEGLIGIBLE, 2 * NUM_ERRORS**2 / (rows * entropy))
    return max(NEGLIGIBLE, NUM_ERRORS * ne_error)


def _worse_than_rate(run: RunData, worse: Sequence[WindowSpan]) -> tuple[str, str]:
    """Likely reason and suggested change for a normalised entropy above 1."""
    if (few := _few_steps(run)) is not None:
        return few
    if run.mean_of_windows("auc") < CHANCE:
        return (
            "predictions rank no better than by chance: the features say little about the label, or columns have wrong "
            "roles",
            "check the roles of the columns with headrace inspect: ids must be ids, not numbers, and the label the "
            "right column",
        )
    if (begun := _just_begun(run, worse)) is not None:
        return begun
    rates = [rate for span in run.windows if (rate := span.value("label_rate")) > 0]
    if rates and max(rates) > RATE_JUMP * min(rates):
        return (
            f"the label rate changes from window to window, between {min(rates):.2%} and {max(rates):.2%}",
            "pipeline.shuffle, if the log is sorted by its label; otherwise features of the time, such as the hour",
        )
    later = [span for span in worse if span is not run.windows[0]] or worse  # the first window starts untrained
    calibrations = [c for span in later if (c := span.value("calibration")) > 0]
    if calibrations and max(max(calibrations), 1 / min(calibrations)) > OFF:
        off = max(calibrations, key=lambda c: abs(math.log(c)))
        return (
            f"predictions are {off:.2f} times the label rate",
            "lower embeddings.default.optimizer.lr and training.dense_optimizer.lr to a third: they overshoot",
        )
    return (
        "the model ranks, but is too sure of rare ids: it memorizes them",
        "embeddings.default.optimizer: {kind: rowwise_adagrad, lr: 0.1, initial_accumulator: 0.003, reduction: sum}, "
        "as headrace init writes it, so that an id's first rows move it little; if the job has that, half its lr",
    )


def _worse_than_mean(run: RunData, worse: Sequence[WindowSpan]) -> tuple[str, str]:
    """Likely reason and suggested change for a relative squared error above 1."""
    if (known := _few_steps(run) or _just_begun(run, worse)) is not None:
        return known
    means = [mean for span in run.windows if math.isfinite(mean := span.value("label_mean"))]
    if means and min(means) > 0 and max(means) > RATE_JUMP * min(means):
        return (
            f"the label mean changes from window to window, between {min(means):.4g} and {max(means):.4g}",
            "pipeline.shuffle, if the log is sorted by its label; otherwise features of the time, such as the hour",
        )
    return (
        "the model follows single rows: a few labels are very large, or rare ids are memorized",
        "log1p or clipping of the label in pipeline.map, if it has a heavy tail; learning rates a third as high",
    )


def _few_steps(run: RunData) -> tuple[str, str] | None:
    """Reason and change if the model has hardly been trained."""
    steps = _num_steps(run)
    if steps >= FEW_STEPS:
        return None
    return (
        f"the model made only {steps:,.0f} steps",
        f"{_smaller_batches(run)} gives more of them, and so does a log with more rows",
    )


def _just_begun(run: RunData, worse: Sequence[WindowSpan]) -> tuple[str, str] | None:
    """Reason and change if only the first windows are worse."""
    first = list(run.windows[: len(worse)])
    if list(worse) != first or len(first) == len(run.windows):
        return None
    return (
        "the model had just begun: later windows are better",
        f"nothing, if later windows count; otherwise {_smaller_batches(run)}, or learning rates three times as high or "
        "low",
    )


def _smaller_batches(run: RunData) -> str:
    batch_size = run.job_value("training", "batch_size")
    return f"a smaller training.batch_size (now {batch_size})" if batch_size else "a smaller training.batch_size"


def _worse_than_baseline(run: RunData, name: str) -> tuple[str, str]:
    """Likely reason and suggested change for an AUC below the baseline's."""
    steps = _num_steps(run)
    if steps < FEW_STEPS:
        return f"the model made only {steps:,.0f} steps", "a smaller training.batch_size, or a log with more rows"
    last = run.windows[-1]
    if len(run.windows) > 1 and last.value("auc") >= last.value("baseline_auc"):
        return "the model had just begun: the last window is ahead", "nothing, if later windows count"
    return (
        f"{name} is not a feature in the form in which it ranks, or it is lost among the other features",
        f"features.dense.{name} with log1p and clipping; model.kind: dcnv2, whose products include dense features",
    )


def _num_steps(run: RunData) -> float:
    found = [step for span in run.windows if math.isfinite(step := span.value("step"))]
    return max(found, default=math.inf)
