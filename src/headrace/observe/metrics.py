"""Declarations of a run's metrics, with name, unit, kind and meaning.

Report captions, TensorBoard tags and the table in the documentation are generated from these declarations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

__all__ = [
    "BINARY_METRICS",
    "METRICS",
    "REGRESSION_METRICS",
    "Kind",
    "Metric",
    "MetricRegistry",
    "QualityColumn",
    "quality_columns",
]


class Kind(StrEnum):
    """Kind of a metric."""

    COUNTER = "counter"
    """A total since the run started, which only grows."""
    GAUGE = "gauge"
    """A current value; it can go up and down."""
    WINDOWED = "windowed"
    """Covers the time since the previous record; the sum over records is the total."""


@dataclass(frozen=True)
class Metric:
    """One declared metric."""

    name: str
    unit: str
    kind: Kind
    description: str


class MetricRegistry:
    """Metrics by name, in order of declaration."""

    def __init__(self) -> None:
        self._metrics: dict[str, Metric] = {}

    def declare(self, name: str, *, unit: str, kind: Kind, description: str) -> Metric:
        """Add a metric; repeating an identical declaration is allowed, so that a module can be imported twice.

        Raises:
            ValueError: The name has a different declaration; the message shows both.
        """
        metric = Metric(name, unit, kind, description)
        known = self._metrics.setdefault(name, metric)
        if known != metric:
            raise ValueError(f"metric {name} is declared twice: as {known} and as {metric}")
        return metric

    def __getitem__(self, name: str) -> Metric:
        return self._metrics[name]

    def __contains__(self, name: object) -> bool:
        return name in self._metrics

    def __iter__(self) -> Iterator[Metric]:
        return iter(self._metrics.values())

    def __len__(self) -> int:
        return len(self._metrics)

    def to_markdown(self) -> str:
        """The declarations as a Markdown table."""
        rows = [f"| `{m.name}` | {m.unit} | {m.kind} | {m.description} |" for m in self]
        return "\n".join(["| metric | unit | kind | meaning |", "|---|---|---|---|", *rows])


BINARY_METRICS = ("auc", "log_loss", "ne", "calibration")
"""Metrics of a binary label."""

REGRESSION_METRICS = ("rmse", "mae", "relative_mse", "bias")
"""Metrics of a label that is a number."""

QualityColumn = tuple[str, str, str]
"""Metric, title and format of a column in tables of results."""


def quality_columns(is_regression: bool) -> tuple[QualityColumn, ...]:
    """Columns of tables of results for a label that is a number, or for a binary one."""
    if is_regression:
        return ("rmse", "RMSE", ".5g"), ("mae", "MAE", ".5g"), ("relative_mse", "relative MSE", ".4f")
    return ("auc", "AUC", ".4f"), ("log_loss", "log loss", ".4f"), ("ne", "NE", ".4f")


METRICS = MetricRegistry()
"""Metrics in a run's `metrics.jsonl`. A dot means nesting: `seconds.wait` is `{"seconds": {"wait": ...}}`."""

for _name, _unit, _kind, _description in (
    ("time_s", "s", Kind.COUNTER, "Time spent training since the run began."),
    ("step", "steps", Kind.COUNTER, "Number of optimizer steps."),
    ("rows", "rows", Kind.COUNTER, "Rows used: since the run began in step records, in the window in window records."),
    ("loss", "nats", Kind.GAUGE, "Mean loss of the rows since the previous record, over all labels."),
    ("auc", "", Kind.GAUGE, "Area under the ROC curve in the window (so far), for predictions made before training."),
    (
        "ne",
        "",
        Kind.GAUGE,
        "Normalised entropy in the window (so far): log loss divided by that of predicting the mean.",
    ),
    ("rmse", "", Kind.GAUGE, "Root mean squared error in the window (so far), if the first label is a number."),
    (
        "relative_mse",
        "",
        Kind.GAUGE,
        "Mean squared error in the window (so far), divided by that of predicting the mean.",
    ),
    ("lr_factor", "", Kind.GAUGE, "Factor of the learning rates, with `training.learning_rate_schedule`."),
    ("rows_per_s", "rows/s", Kind.GAUGE, "Rows used per second since the previous record."),
    ("seconds.wait", "s", Kind.WINDOWED, "Trainer waiting for a batch."),
    (
        "seconds.pull",
        "s",
        Kind.WINDOWED,
        "Fetching embedding rows, if timed separately from the forward pass.",
    ),
    ("seconds.forward", "s", Kind.WINDOWED, "Forward pass."),
    ("seconds.backward", "s", Kind.WINDOWED, "Backward pass."),
    ("seconds.push", "s", Kind.WINDOWED, "Merging and applying embedding gradients."),
    ("seconds.dense_optimizer", "s", Kind.WINDOWED, "Optimizer update of the dense parameters."),
    ("seconds.checkpoint", "s", Kind.WINDOWED, "Writing a checkpoint."),
    ("stages.queue", "elements", Kind.GAUGE, "Elements queued behind a pipeline stage."),
    ("stages.busy_s", "s", Kind.WINDOWED, "CPU time of a stage's workers."),
    ("stages.bytes", "bytes", Kind.GAUGE, "Bytes in flight held by a stage."),
    ("stages.workers", "workers", Kind.GAUGE, "Workers of a stage."),
    ("threads", "workers", Kind.GAUGE, "Workers shared by all stages."),
    ("cpus", "CPUs", Kind.GAUGE, "CPUs that this process can use."),
    ("bytes_in_flight", "bytes", Kind.GAUGE, "Bytes of all elements between source and trainer."),
    ("budget_bytes", "bytes", Kind.GAUGE, "Memory budget for elements in flight."),
    ("memory_bytes", "bytes", Kind.GAUGE, "Resident memory of the process."),
    ("memory_limit_bytes", "bytes", Kind.GAUGE, "Memory that this process can use."),
    ("dedup.num_rows", "rows", Kind.WINDOWED, "Rows of the batches that features were computed for."),
    ("dedup.num_read_bytes", "bytes", Kind.WINDOWED, "Compressed bytes of files that were read completely."),
    (
        "dedup.num_plain_read_bytes",
        "bytes",
        Kind.WINDOWED,
        "Compressed bytes of the same columns and rows before clustering.",
    ),
    ("dedup.num_row_bytes", "bytes", Kind.WINDOWED, "Bytes of the rows that features were computed from, as read."),
    ("dedup.num_plain_row_bytes", "bytes", Kind.WINDOWED, "Bytes of these rows as plain rows."),
    ("dedup.num_values", "values", Kind.WINDOWED, "Features times the rows that they were computed for."),
    ("dedup.num_plain_values", "values", Kind.WINDOWED, "Features times rows."),
    ("dedup.num_ids", "ids", Kind.WINDOWED, "Ids written into batches and looked up."),
    ("dedup.num_plain_ids", "ids", Kind.WINDOWED, "Ids of all rows."),
    ("dedup.num_bytes", "bytes", Kind.WINDOWED, "Bytes of the batches."),
    ("dedup.num_plain_bytes", "bytes", Kind.WINDOWED, "Bytes of the same batches with plain rows."),
    ("dedup.num_flop", "FLOP", Kind.WINDOWED, "Operations of towers over histories in forward passes."),
    ("dedup.num_plain_flop", "FLOP", Kind.WINDOWED, "The same operations if every row had its own history."),
    ("storage.num_used_rows", "rows", Kind.WINDOWED, "Unique rows of all steps, if rows are in files."),
    (
        "storage.num_read_rows",
        "rows",
        Kind.WINDOWED,
        "Of these, rows read from a file, because they were not in memory.",
    ),
    ("storage.num_late_rows", "rows", Kind.WINDOWED, "Of these, rows that were read only when their step needed them."),
    ("storage.num_read_pages", "pages", Kind.WINDOWED, "Pages read, also to keep the file compact."),
    ("storage.num_read_bytes", "bytes", Kind.WINDOWED, "Bytes of these pages."),
    ("storage.num_written_bytes", "bytes", Kind.WINDOWED, "Bytes written to the file."),
    ("budget.rows", "rows", Kind.GAUGE, "Rows that ids of a table have, under a budget."),
    ("budget.gained", "rows", Kind.COUNTER, "Rows that ids of a table got since the process began."),
    ("budget.lost", "rows", Kind.COUNTER, "Rows that ids of a table lost since the process began."),
    ("placement.num_keys", "rows", Kind.WINDOWED, "Unique rows of all steps, if trainers keep rows of their shards."),
    ("placement.num_resident", "rows", Kind.WINDOWED, "Rows that were in the trainer already."),
    ("placement.num_elsewhere", "rows", Kind.WINDOWED, "Rows that another trainer kept."),
    ("placement.num_new", "rows", Kind.WINDOWED, "Rows that were never trained before, so that nothing moved."),
    ("placement.num_bytes", "bytes", Kind.WINDOWED, "Bytes moved between trainer and shards, and to other trainers."),
    ("placement.num_fetched_bytes", "bytes", Kind.WINDOWED, "Of these, rows from the shards, with their ids."),
    ("placement.num_returned_bytes", "bytes", Kind.WINDOWED, "Of these, rows back to the shards, with their ids."),
    ("placement.num_key_bytes", "bytes", Kind.WINDOWED, "Of these, keys of batches that other trainers were told."),
    ("placement.num_state_bytes", "bytes", Kind.WINDOWED, "Of these, rows handed over to other trainers."),
    ("placement.num_value_bytes", "bytes", Kind.WINDOWED, "Of these, values of rows that other trainers read."),
    ("placement.num_gradient_bytes", "bytes", Kind.WINDOWED, "Of these, gradients of rows that other trainers kept."),
    ("placement.num_sample_bytes", "bytes", Kind.WINDOWED, "Of these, samples that other trainers trained."),
    ("placement.num_placed_samples", "samples", Kind.WINDOWED, "Samples of which a trainer was chosen."),
    ("placement.num_moved_samples", "samples", Kind.WINDOWED, "Of these, samples that another trainer trained."),
    ("placement.num_plain_bytes", "bytes", Kind.WINDOWED, "Bytes of reads and updates of all rows in every step."),
    ("log_loss", "nats", Kind.GAUGE, "Log loss over the window."),
    ("ne_error", "", Kind.GAUGE, "Standard error of `ne` over the window, if rows are independent."),
    ("calibration", "", Kind.GAUGE, "Sum of predictions over sum of labels in the window; 1 is best."),
    ("mae", "", Kind.GAUGE, "Mean absolute error in the window."),
    ("bias", "", Kind.GAUGE, "Mean prediction minus mean label in the window."),
    ("best_ne", "", Kind.GAUGE, "Normalised entropy of the best possible model, if known."),
    ("baseline_auc", "", Kind.GAUGE, "Area under the ROC curve of the baseline feature, if one is set."),
    ("read", "rows", Kind.GAUGE, "Rows read in the window: used + filtered + dropped + quarantined."),
    ("filtered", "rows", Kind.GAUGE, "Rows of the window removed by the job's own filters."),
    ("dropped", "rows", Kind.GAUGE, "Bad rows dropped in the window."),
    ("quarantined", "rows", Kind.GAUGE, "Bad rows quarantined in the window."),
    ("seconds", "s", Kind.GAUGE, "Time spent on the window, in window records."),
    ("label_rate", "", Kind.GAUGE, "Share of positive rows in the window."),
    ("label_mean", "", Kind.GAUGE, "Mean of a label that is a number in the window."),
    ("run.rows", "rows", Kind.COUNTER, "Rows used since the run began, in window records."),
    ("run.bad", "rows", Kind.COUNTER, "Bad rows since the run began."),
    ("run.seconds", "s", Kind.COUNTER, "Time spent training since the run began."),
    ("run.auc", "", Kind.GAUGE, "Area under the ROC curve over all rows since the run began."),
    ("run.log_loss", "nats", Kind.GAUGE, "Log loss over all rows since the run began."),
    ("run.ne", "", Kind.GAUGE, "Normalised entropy over all rows since the run began."),
    ("run.ne_error", "", Kind.GAUGE, "Standard error of `run.ne`, if rows are independent."),
    ("run.calibration", "", Kind.GAUGE, "Sum of predictions over sum of labels since the run began."),
    ("run.rmse", "", Kind.GAUGE, "Root mean squared error over all rows since the run began."),
    ("run.mae", "", Kind.GAUGE, "Mean absolute error over all rows since the run began."),
    ("run.relative_mse", "", Kind.GAUGE, "Mean squared error over that of predicting the mean, since the run began."),
    ("run.bias", "", Kind.GAUGE, "Mean prediction minus mean label since the run began."),
):
    METRICS.declare(_name, unit=_unit, kind=_kind, description=_description)
