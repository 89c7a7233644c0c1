"""The metrics of a run, each declared once: its name, unit, kind and what it means.

Report captions, TensorBoard tags and the table in the documentation are made from these declarations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["METRICS", "Kind", "Metric", "MetricRegistry"]


class Kind(StrEnum):
    """How the values of a metric behave."""

    COUNTER = "counter"
    """Only grows: a total since the run began."""
    GAUGE = "gauge"
    """A value now; it may go up and down."""
    WINDOWED = "windowed"
    """Of the stretch since the record before; adding up the records gives the total."""


@dataclass(frozen=True)
class Metric:
    """One declared metric."""

    name: str
    unit: str
    kind: Kind
    description: str


class MetricRegistry:
    """Metrics by name, in the order of their declaration."""

    def __init__(self) -> None:
        self._metrics: dict[str, Metric] = {}

    def declare(self, name: str, *, unit: str, kind: Kind, description: str) -> Metric:
        """Add a metric; declaring the same again is allowed, so that a module may be imported twice.

        Raises:
            ValueError: If the name is taken by another declaration; both are in the text.
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


METRICS = MetricRegistry()
"""What `metrics.jsonl` of a run may hold. A dot stands for nesting: `seconds.wait` is `{"seconds": {"wait": ...}}`."""

for _name, _unit, _kind, _description in (
    ("time_s", "s", Kind.COUNTER, "Time spent training since the run began."),
    ("step", "steps", Kind.COUNTER, "Optimizer steps done."),
    ("rows", "rows", Kind.COUNTER, "Rows used: since the run began in a step record, of the window in its own record."),
    ("loss", "nats", Kind.GAUGE, "Log loss, averaged over the rows since the record before."),
    ("auc", "", Kind.GAUGE, "Area under the ROC curve in the window (so far), of predictions made before training."),
    ("ne", "", Kind.GAUGE, "Normalised entropy in the window (so far): log loss over that of predicting the mean."),
    ("rows_per_s", "rows/s", Kind.GAUGE, "Rows used a second, since the record before."),
    ("seconds.wait", "s", Kind.WINDOWED, "The trainer waits for a batch."),
    (
        "seconds.pull",
        "s",
        Kind.WINDOWED,
        "Embedding rows are fetched, where that is timed apart from the forward pass.",
    ),
    ("seconds.forward", "s", Kind.WINDOWED, "Forward pass."),
    ("seconds.backward", "s", Kind.WINDOWED, "Backward pass."),
    ("seconds.push", "s", Kind.WINDOWED, "Embedding gradients are merged and applied."),
    ("seconds.dense_optimizer", "s", Kind.WINDOWED, "The optimizer updates the dense parameters."),
    ("seconds.checkpoint", "s", Kind.WINDOWED, "A checkpoint is written."),
    ("stages.queue", "elements", Kind.GAUGE, "Elements that wait behind a pipeline stage."),
    ("stages.busy_s", "s", Kind.WINDOWED, "CPU time a stage's workers used."),
    ("stages.bytes", "bytes", Kind.GAUGE, "Bytes in flight that a stage holds."),
    ("stages.workers", "workers", Kind.GAUGE, "Workers a stage has."),
    ("threads", "workers", Kind.GAUGE, "Workers that all stages share."),
    ("cpus", "CPUs", Kind.GAUGE, "CPUs this process may use."),
    ("bytes_in_flight", "bytes", Kind.GAUGE, "Bytes of all elements between source and trainer."),
    ("budget_bytes", "bytes", Kind.GAUGE, "What elements in flight may hold."),
    ("memory_bytes", "bytes", Kind.GAUGE, "Resident memory of the process."),
    ("memory_limit_bytes", "bytes", Kind.GAUGE, "Memory this process may use."),
    ("dedup.num_rows", "rows", Kind.WINDOWED, "Rows of the batches that features were computed for."),
    ("dedup.num_read_bytes", "bytes", Kind.WINDOWED, "Compressed bytes of files that were read to their end."),
    (
        "dedup.num_plain_read_bytes",
        "bytes",
        Kind.WINDOWED,
        "That the same columns of the same rows took before they were clustered.",
    ),
    ("dedup.num_row_bytes", "bytes", Kind.WINDOWED, "Of the rows that features were computed from, as they came."),
    ("dedup.num_plain_row_bytes", "bytes", Kind.WINDOWED, "That these have as plain rows."),
    ("dedup.num_values", "values", Kind.WINDOWED, "Features times the rows they were computed for."),
    ("dedup.num_plain_values", "values", Kind.WINDOWED, "Features times rows."),
    ("dedup.num_ids", "ids", Kind.WINDOWED, "Ids written into batches, and looked up."),
    ("dedup.num_plain_ids", "ids", Kind.WINDOWED, "Ids that all rows have."),
    ("dedup.num_bytes", "bytes", Kind.WINDOWED, "Of the batches."),
    ("dedup.num_plain_bytes", "bytes", Kind.WINDOWED, "That batches of plain rows would have."),
    ("dedup.num_flop", "FLOP", Kind.WINDOWED, "Of towers over histories in forward passes."),
    ("dedup.num_plain_flop", "FLOP", Kind.WINDOWED, "That these would take if every row had its own history."),
    ("log_loss", "nats", Kind.GAUGE, "Log loss over the window."),
    ("calibration", "", Kind.GAUGE, "Sum of predictions over sum of labels in the window; 1 is best."),
    ("best_ne", "", Kind.GAUGE, "Normalised entropy that the best possible model reaches, where it is known."),
    ("baseline_auc", "", Kind.GAUGE, "Area under the ROC curve of a plain baseline, where one is given."),
    ("read", "rows", Kind.GAUGE, "Rows of the window read: used + filtered + dropped + quarantined."),
    ("filtered", "rows", Kind.GAUGE, "Rows of the window that the job's own filters left out."),
    ("dropped", "rows", Kind.GAUGE, "Bad rows of the window that were dropped."),
    ("quarantined", "rows", Kind.GAUGE, "Bad rows of the window that were quarantined."),
    ("seconds", "s", Kind.GAUGE, "Time spent on the window, in its own record."),
):
    METRICS.declare(_name, unit=_unit, kind=_kind, description=_description)
