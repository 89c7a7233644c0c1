"""`TrainingState`: how far a run is, apart from the parameters; a checkpoint holds both."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError
from torch import nn

from headrace.embeddings import EmbeddingTable, embedding_bags
from headrace.embeddings.tables.parts import join_parts
from headrace.embeddings.tables.state import Columns
from headrace.errors import CheckpointError
from headrace.logs import Cursor, Window
from headrace.models.products import Precision
from headrace.pipeline import RowStats
from headrace.training.checkpoint import Snapshot
from headrace.training.dense_optimizer import load_optimizer_arrays, optimizer_arrays
from headrace.training.metrics import BinaryMetrics
from headrace.training.process_group import ProcessGroup

__all__ = ["TrainingState", "load_parameters", "parameters", "restore", "take_snapshot"]


class _SavedState(BaseModel):
    """`TrainingState` as a checkpoint holds it; see `docs/checkpoints.md`."""

    shape: dict[str, Any]
    step: int = Field(ge=0)
    precision: Precision | None
    cursor: dict[str, Any]
    window: dict[str, Any] | None
    token: dict[str, Any] | None
    replayed: tuple[str, ...]
    rows: dict[str, int]
    window_rows: dict[str, int]
    seconds: float = Field(ge=0)
    window_seconds: float = Field(ge=0)


@dataclass
class TrainingState:
    """How far a run is.

    Attributes:
        label_names: Names of the labels, which order the metrics.
        checkpoint: Number of the newest checkpoint; 0 before the first.
        step: Optimizer steps made.
        precision: What matrix products take, once it is decided.
        cursor: Which rows whole windows have used.
        window: The window in progress, or None between windows.
        position: Where in that window the next batch begins, see `BatchIterator.state_dict`; None at its start.
        replayed: Quarantine files that were trained on after a fix.
        rows: What became of all rows so far.
        window_rows: The same for the window in progress.
        seconds: Time spent training so far.
        window_seconds: The same for the window in progress.
        running: Metrics over all rows so far, one per label.
        in_window: Metrics over the window in progress, one per label.
        baseline: Metrics of the baseline feature over the window in progress, as if it were a logit of the first label.
    """

    label_names: tuple[str, ...]
    checkpoint: int = 0
    step: int = 0
    precision: Precision | None = None
    cursor: Cursor = field(default_factory=Cursor)
    window: Window | None = None
    position: dict[str, Any] | None = None
    replayed: tuple[str, ...] = ()
    rows: RowStats = field(default_factory=RowStats)
    window_rows: RowStats = field(default_factory=RowStats)
    seconds: float = 0.0
    window_seconds: float = 0.0
    running: dict[str, BinaryMetrics] = field(default_factory=dict)
    in_window: dict[str, BinaryMetrics] = field(default_factory=dict)
    baseline: BinaryMetrics = field(default_factory=BinaryMetrics)

    def __post_init__(self) -> None:
        self.running = {name: BinaryMetrics() for name in self.label_names}
        self.in_window = {name: BinaryMetrics() for name in self.label_names}

    def start_window(self, window: Window) -> None:
        """Begin a window; `window` is None before."""
        self.window = window
        self.start_stretch()

    def start_stretch(self) -> None:
        """Begin to count a stretch of rows anew."""
        self.position = None
        self.window_rows, self.window_seconds = RowStats(), 0.0
        self.in_window = {name: BinaryMetrics() for name in self.label_names}
        self.baseline = BinaryMetrics()

    def finish_window(self) -> None:
        """Count the window in progress as used."""
        assert self.window is not None
        self.cursor, self.window, self.position = self.window.cursor_after, None, None

    def count(self, rows: RowStats, seconds: float) -> None:
        """Add what a step used."""
        rows = rows.counts()
        self.rows += rows
        self.window_rows += rows
        self.seconds += seconds
        self.window_seconds += seconds

    def gather(self, process_group: ProcessGroup) -> None:
        """Move what all trainers have counted to trainer 0; the others begin anew.

        Every trainer counts its own rows, so sums over trainers are those of all rows.
        """
        if process_group.size == 1:
            return
        metrics = [*self.running.values(), *self.in_window.values(), self.baseline]
        states = [metric.state_dict() for metric in metrics]
        counts = [np.array([*rows.to_dict().values()], np.float64) for rows in (self.rows, self.window_rows)]
        arrays = [state[key] for state in states for key in ("bins", "sums")]
        totals = process_group.total([*counts, *arrays])
        if process_group.rank:
            self.forget_counts()
            return
        self.rows, self.window_rows = (
            RowStats.from_dict(dict(zip(rows.to_dict(), total, strict=True)))
            for rows, total in zip((self.rows, self.window_rows), totals, strict=False)
        )
        for place, metric in enumerate(metrics):
            metric.load_state_dict({"bins": totals[2 + 2 * place], "sums": totals[3 + 2 * place]})

    def forget_counts(self) -> None:
        """Rows and metrics of nothing yet."""
        self.rows, self.window_rows, self.baseline = RowStats(), RowStats(), BinaryMetrics()
        self.running = {name: BinaryMetrics() for name in self.label_names}
        self.in_window = {name: BinaryMetrics() for name in self.label_names}

    def update_metrics(
        self, logits: NDArray[np.float32], labels: NDArray[np.float32], weights: NDArray[np.float32] | None
    ) -> None:
        """Add a batch's predictions: logits and labels float32 [B, L], weights float32 [B] or None."""
        for place, name in enumerate(self.label_names):
            for metrics in (self.running[name], self.in_window[name]):
                metrics.update(logits[:, place], labels[:, place], weights)


def take_snapshot(state: TrainingState, model: nn.Module, optimizer: torch.optim.Optimizer, shape: Any) -> Snapshot:
    """Everything needed to go on, as a checkpoint holds it.

    Args:
        state: How far the run is.
        model: Its dense parameters and embedding tables are taken.
        optimizer: Of the dense parameters.
        shape: JSON-able description of the model; another one is refused by `restore`.
    """
    metrics = {
        f"{part}.{name}.{key}": array
        for part, of_label in (("running", state.running), ("in_window", state.in_window))
        for name, metric in of_label.items()
        for key, array in metric.state_dict().items()
    }
    metrics |= {f"baseline.{key}": array for key, array in state.baseline.state_dict().items()}
    values = {
        "shape": shape,
        "step": state.step,
        "precision": state.precision,
        "cursor": state.cursor.to_dict(),
        "window": None if state.window is None else state.window.to_dict(),
        "token": state.position,
        "replayed": list(state.replayed),
        "rows": state.rows.to_dict(),
        "window_rows": state.window_rows.to_dict(),
        "seconds": state.seconds,
        "window_seconds": state.window_seconds,
    }
    dense, columns = parameters(model)
    arrays = {"dense": dense, "optimizer": optimizer_arrays(optimizer), "metrics": metrics}
    return Snapshot(state.checkpoint, values, arrays, columns)


def parameters(model: nn.Module) -> tuple[Columns, dict[str, Columns]]:
    """The dense parameters by name, and the columns of each table in this process."""
    dense = {name: value.detach().cpu().numpy() for name, value in model.state_dict().items()}
    return dense, {name: table.state_dict() for name, table in _tables(model).items()}


def restore(
    snapshot: Snapshot, state: TrainingState, model: nn.Module, optimizer: torch.optim.Optimizer | None, shape: Any
) -> None:
    """Make state, model and optimizer what they were when the snapshot was taken.

    Raises:
        CheckpointError: The checkpoint belongs to another model; the first difference is named with both sides.
    """
    try:
        values = _SavedState.model_validate(snapshot.state)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"checkpoint {snapshot.number}: state.{key}: {first['msg']}") from error
    difference = _first_difference(values.shape, shape)
    if difference:
        key, was, now = difference
        raise CheckpointError(
            f"checkpoint {snapshot.number} belongs to another model: {key} was {was}, is now {now}; "
            "use another run folder, or change it back"
        )
    state.checkpoint, state.step = snapshot.number, values.step
    state.precision = values.precision
    state.cursor = Cursor.from_dict(values.cursor)
    state.window = None if values.window is None else Window.from_dict(values.window)
    state.position = values.token
    state.replayed = values.replayed
    state.rows, state.window_rows = RowStats.from_dict(values.rows), RowStats.from_dict(values.window_rows)
    state.seconds, state.window_seconds = values.seconds, values.window_seconds
    saved = snapshot.arrays["metrics"]
    for part, of_label in (("running", state.running), ("in_window", state.in_window)):
        for name, metric in of_label.items():
            metric.load_state_dict({key: saved[f"{part}.{name}.{key}"] for key in ("bins", "sums")})
    state.baseline.load_state_dict({key: saved[f"baseline.{key}"] for key in ("bins", "sums")})
    load_parameters(snapshot, model)
    if optimizer is not None:
        load_optimizer_arrays(optimizer, snapshot.arrays.get("optimizer", {}))


def load_parameters(snapshot: Snapshot, model: nn.Module) -> None:
    """Make a model's dense parameters and tables those of a snapshot.

    Raises:
        CheckpointError: They do not fit the model.
    """
    dense = {name: torch.from_numpy(array.copy()) for name, array in snapshot.arrays.get("dense", {}).items()}
    try:
        model.load_state_dict(dense)
    except RuntimeError as error:
        raise CheckpointError(f"dense parameters: {' '.join(str(error).split())}") from error
    missing = [name for name in _tables(model) if name not in snapshot.parts and name not in snapshot.columns]
    if missing:
        raise CheckpointError(f"embedding table {missing[0]}: is not saved")
    for name, table in _tables(model).items():
        table.load_state_dict(join_parts(snapshot.parts[name]) if name in snapshot.parts else snapshot.columns[name])


def _tables(model: nn.Module) -> dict[str, EmbeddingTable]:
    """The tables in this process by name, which can name a folder."""
    tables = {table_name(name): bags.table for name, bags in embedding_bags(model).items()}
    return {name: table for name, table in tables.items() if table is not None}


def table_name(module: str) -> str:
    """The name of the table of an `EmbeddingBags`, by that of the module."""
    return module.replace(".", "-")


def _first_difference(was: Any, now: Any, key: str = "") -> tuple[str, str, str] | None:
    if isinstance(was, dict) and isinstance(now, dict):
        for name in list(was) + [name for name in now if name not in was]:
            inner = f"{key}.{name}" if key else name
            if name not in was or name not in now:
                return inner, repr(was.get(name, "absent")), repr(now.get(name, "absent"))
            found = _first_difference(was[name], now[name], inner)
            if found:
                return found
        return None
    return None if was == now else (key, repr(was), repr(now))
