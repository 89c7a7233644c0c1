"""`RunData`: the contents of a run folder for its report: step records as columns, windows, decisions, config."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from headrace.bounded_yaml import BoundedLoader
from headrace.errors import ConfigError
from headrace.observe.decisions import Decision, read_decisions
from headrace.observe.jsonl import read_jsonl
from headrace.observe.metrics import BINARY_METRICS, REGRESSION_METRICS, QualityColumn, quality_columns
from headrace.observe.timeline import read_schedule

__all__ = ["Floats", "RunData", "WholeRun", "WindowSpan"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class WindowSpan:
    """A finished window and the range of the run's rows it covers."""

    name: str
    first_row: float
    last_row: float
    record: Mapping[str, Any]

    def value(self, key: str) -> float:
        """A number of the window's record, or NaN."""
        return _number(self.record.get(key))


@dataclass(frozen=True)
class WholeRun:
    """Totals and metrics of a run over all rows of its finished windows; NaN if unknown.

    Attributes:
        rows: Number of rows used.
        bad: Number of bad rows.
        seconds: Training time in seconds.
        auc, log_loss, ne, calibration: Metrics of predictions made before training on each row, over all rows.
        ne_error: Standard error of `ne`; NaN for runs by older versions.
        rmse, mae, relative_mse, bias: The same for a label that is a number.
        baseline_auc: AUC of the baseline feature.
        is_mean: Whether the metrics are row-weighted means of the windows, as for runs by older versions.
    """

    rows: float
    bad: float
    seconds: float
    auc: float
    log_loss: float
    ne: float
    calibration: float
    ne_error: float = math.nan
    is_mean: bool = False
    rmse: float = math.nan
    mae: float = math.nan
    relative_mse: float = math.nan
    bias: float = math.nan
    baseline_auc: float = math.nan

    @property
    def rows_per_s(self) -> float:
        """Rows used per second."""
        return self.rows / self.seconds if self.seconds > 0 else math.nan


@dataclass(frozen=True)
class RunData:
    """The contents of a run folder.

    Attributes:
        name: Name of the run, which is that of its folder.
        columns: Numbers of the step records by dotted name ("seconds.wait"), each float64 [num_records], NaN where
            missing.
        rows: Total rows used up to each step record, also across resumes, where a process counts from 0 again.
        time_s: Total seconds up to each step record, also across resumes.
        windows: Finished windows, in order.
        decisions: Decisions, in order.
        config: Text of the resolved job; empty if missing.
        schedule: Timeline of the latest steps, see `headrace.observe.timeline`; None without a scheduler.
    """

    name: str
    columns: Mapping[str, Floats]
    rows: Floats
    time_s: Floats
    windows: tuple[WindowSpan, ...]
    decisions: tuple[Decision, ...]
    config: str
    schedule: dict[str, Any] | None = None

    @classmethod
    def read(cls, folder: str | Path) -> RunData:
        """Read a run folder; the run may still be in progress.

        Raises:
            ConfigError: The folder does not exist or has no metrics.
            DataError: A metrics line is not JSON; the message names file and line.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such run folder")
        if not (folder / "metrics.jsonl").is_file():
            raise ConfigError(f"{folder}: has no metrics.jsonl, expected a run folder")
        steps = _Columns()
        names: list[str] = []
        windows: list[Mapping[str, Any]] = []
        for record in read_jsonl(folder / "metrics.jsonl"):
            if record.get("kind") == "window":
                windows.append(record)
            elif record.get("kind") == "step":
                steps.append(record)
                names.append(str(record.get("window", "")))
        columns = steps.arrays()
        count = np.arange(1.0, steps.num_rows + 1)
        rows = _growing(columns.get("rows", columns.get("step", count)))
        config = folder / "config.yaml"
        return cls(
            name=folder.resolve().name,
            columns=columns,
            rows=rows,
            time_s=_seconds(columns.get("time_s", count)),
            windows=tuple(_spans(windows, names, rows)),
            decisions=tuple(read_decisions(folder / "decisions.jsonl")),
            config=config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "",
            schedule=read_schedule(folder),
        )

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def is_regression(self) -> bool:
        """Whether the first label is a number."""
        return any("relative_mse" in span.record for span in self.windows) or "relative_mse" in self.columns

    @property
    def quality_columns(self) -> tuple[QualityColumn, ...]:
        """The columns about quality in tables of windows."""
        return quality_columns(self.is_regression)

    def column(self, name: str) -> Floats:
        """A column of the step records; all NaN if it does not exist."""
        return self.columns.get(name, np.full(len(self), np.nan))

    def names_below(self, prefix: str) -> list[str]:
        """Names nested under a prefix: `names_below("seconds")` may return ["wait", "forward"]."""
        found = (name[len(prefix) + 1 :].split(".")[0] for name in self.columns if name.startswith(prefix + "."))
        return list(dict.fromkeys(found))

    def whole(self) -> WholeRun | None:
        """The run over all rows of its finished windows; None before the first window ends."""
        if not self.windows:
            return None
        names = (*BINARY_METRICS, *REGRESSION_METRICS)
        found = self.windows[-1].record.get("run")
        if isinstance(found, Mapping):
            keys = ("rows", "bad", "seconds", *names, "ne_error", "baseline_auc")
            numbers: dict[str, Any] = {name: _number(found.get(name)) for name in keys}
            return WholeRun(**numbers)
        means: dict[str, Any] = {name: self.mean_of_windows(name) for name in (*names, "baseline_auc")}
        counts = {"rows": ("rows",), "bad": ("dropped", "quarantined"), "seconds": ("seconds",)}
        sums: dict[str, Any] = {
            name: sum(value for span in self.windows for key in keys if math.isfinite(value := span.value(key)))
            for name, keys in counts.items()
        }
        return WholeRun(**sums, **means, is_mean=True)

    def mean_of_windows(self, key: str) -> float:
        """The row-weighted mean of a metric over the windows that have it."""
        found = [(span.value(key), max(span.value("rows"), 1.0)) for span in self.windows]
        found = [(value, rows) for value, rows in found if math.isfinite(value) and math.isfinite(rows)]
        total = sum(rows for _, rows in found)
        return sum(value * rows for value, rows in found) / total if found else math.nan

    def auc_and_baseline(self) -> tuple[float, float]:
        """AUC of the model and of the baseline over all rows; means of the windows in runs by older versions, which
        have no baseline over all rows. NaN without windows or without a baseline."""
        whole = self.whole()
        if whole is not None and math.isfinite(whole.baseline_auc):
            return whole.auc, whole.baseline_auc
        return self.mean_of_windows("auc"), self.mean_of_windows("baseline_auc")

    def settings(self) -> dict[str, Any]:
        """The values of the job by dotted keys, without splitting lists; empty if the job is unknown."""
        try:
            values: Any = yaml.load(self.config, BoundedLoader)
        except yaml.YAMLError:
            return {}
        return dict(_values(values, "")) if isinstance(values, Mapping) else {}

    def job_value(self, *keys: str) -> str:
        """A value of the job by its keys; empty if missing."""
        try:
            value: Any = yaml.load(self.config, BoundedLoader)
        except yaml.YAMLError:
            return ""
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return str(value) if isinstance(value, str | int | float) else ""

    def since_last(self, values: Floats) -> Floats:
        """Increments of a growing column since the previous record; NaN where it did not grow."""
        grown = np.diff(values, prepend=0.0)
        return np.where(grown > 0, grown, np.nan)


class _Columns:
    """Collects the numbers of nested records in flat columns; 100,000 records take some tens of MB."""

    def __init__(self) -> None:
        self.num_rows = 0
        self._columns: dict[str, array[float]] = {}

    def append(self, record: Mapping[str, Any]) -> None:
        for name, value in _leaves(record, ""):
            column = self._columns.setdefault(name, array("d"))
            column.extend([math.nan] * (self.num_rows - len(column)))
            column.append(value)
        self.num_rows += 1

    def arrays(self) -> dict[str, Floats]:
        for column in self._columns.values():
            column.extend([math.nan] * (self.num_rows - len(column)))
        return {name: np.array(column, dtype=np.float64) for name, column in self._columns.items()}


def _leaves(record: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + key, float(value)


def _values(values: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _values(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _growing(values: Floats) -> Floats:
    """Make a count monotonic: where it drops, a new process started from 0, so the previous total is added."""
    if not len(values):
        return values
    last_known = np.maximum.accumulate(np.where(np.isnan(values), 0, np.arange(len(values))))
    filled = np.nan_to_num(values[last_known.astype(np.int64)])
    steps = np.diff(filled, prepend=0.0)
    return np.asarray(np.cumsum(np.where(steps < 0, filled, steps)), dtype=np.float64)


def _seconds(values: Floats) -> Floats:
    # Convert seconds since 1970 to seconds since the first record.
    if len(values) and np.nanmin(values) > 1e8:
        values = values - np.nanmin(values)
    return _growing(values)


def _spans(windows: list[Mapping[str, Any]], names: list[str], rows: Floats) -> Iterator[WindowSpan]:
    """The range of rows of each window.

    A window ends where its rows end, counted over all windows before it, or at the last step record that names it, if
    that is later because rows were also used outside the finished windows.
    """
    ends = {name: float(row) for name, row in zip(names, rows, strict=True) if name}
    first = 0.0
    for number, record in enumerate(windows):
        name = str(record.get("window", number + 1))
        num_rows = _number(record.get("rows"))
        last = max(ends.get(name, 0.0), first + (num_rows if num_rows > 0 else 1.0))
        yield WindowSpan(name, first, last, record)
        first = last
