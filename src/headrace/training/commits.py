"""Commits: a checkpoint, and the output that is committed with it.

A checkpoint holds the parameters (dense parameters, their optimizer, embedding tables) and the `TrainingState`. Further
output, rejected rows and the rows of each step, is written right before the checkpoint that commits it. If a run is
killed between the two, `RunFolder.rewind` moves the output aside on the next start.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel, Field, ValidationError, field_validator
from torch import Tensor, nn

from headrace.embeddings import TableGroup, embedding_bags
from headrace.embeddings.changes.delta import Delta
from headrace.embeddings.tables.state import Columns
from headrace.errors import CheckpointError
from headrace.logs import Cursor, Window, write_rejects
from headrace.models.products import Precision
from headrace.pipeline import RowStats
from headrace.training.checkpoint import CheckpointFolder, Snapshot
from headrace.training.checkpoint_writer import CheckpointWriter, RowsOfShards
from headrace.training.components import JobComponents
from headrace.training.dense_optimizer import load_optimizer_arrays, optimizer_arrays
from headrace.training.feature_changes import FeatureChanges
from headrace.training.process_group import ProcessGroup
from headrace.training.run_folder import RunFolder
from headrace.training.state import TrainingState

__all__ = [
    "SavedState",
    "ShardsOfRun",
    "UncommittedOutput",
    "commit",
    "dense_parameters",
    "follow",
    "load_parameters",
    "newest_checkpoint",
    "parameters",
    "read_state",
    "restore",
    "settle",
    "state_values",
    "table_groups",
    "take_snapshot",
]


class ShardsOfRun(RowsOfShards, Protocol):
    """The shards of a run, which also write whole checkpoints; see `ShardedTables`."""

    def save(self, folder: Path, step: int) -> None:
        """Write all rows into the folder of a checkpoint, as of a step."""


class UncommittedOutput:
    """Output since the last checkpoint: rejected rows, and the rows that each step trained on."""

    def __init__(self, *, keeps_ledger: bool) -> None:
        """Start empty; `keeps_ledger` says whether to keep the row ids of each step."""
        self._keeps_ledger = keeps_ledger
        self._rejects: list[pa.RecordBatch] = []
        self._steps: list[int] = []
        self._row_ids: list[pa.Array] = []

    def add_step(self, step: int, row_ids: Tensor) -> None:
        """Add the row ids (int64 [B]) that a step trained on."""
        if self._keeps_ledger:
            self._steps.append(step)
            self._row_ids.append(pa.array(row_ids.numpy()))

    def add_rejects(self, rejects: Sequence[pa.RecordBatch]) -> None:
        """Add rejected rows."""
        self._rejects.extend(rejects)

    def write(self, run: RunFolder, number: int) -> None:
        """Write and clear the output, under the number of the next checkpoint, which commits it.

        If the process is killed before that checkpoint is complete, `RunFolder.rewind` moves the files aside.
        """
        if self._rejects:
            write_rejects(run.quarantine, f"{number:08d}", self._rejects)
        if self._steps:
            run.write_ledger(number, self._steps, self._row_ids)
        self._rejects, self._steps, self._row_ids = [], [], []


def commit(
    state: TrainingState,
    components: JobComponents,
    output: UncommittedOutput,
    run: RunFolder,
    checkpoints: CheckpointFolder,
    process_group: ProcessGroup,
    shards: ShardsOfRun | None = None,
    writer: CheckpointWriter | None = None,
) -> None:
    """Write the output since the last checkpoint, then the next checkpoint. A collective call of all trainers.

    With a `writer`, the checkpoint is written in the background from a copy of what changed.

    Args:
        state: Progress of the run; the counts of all trainers are moved to trainer 0.
        components: The job's components, whose parameters are saved.
        output: This trainer's output since the last checkpoint.
        run: Folder for this trainer's output.
        checkpoints: Checkpoint folder of the run, written by trainer 0.
        process_group: The trainers.
        shards: The shards that have the tables.
        writer: Writes delta checkpoints.

    Raises:
        CheckpointError: The checkpoint, or with a `writer` the one before, cannot be written; the previous one stays
            the newest.
    """
    if writer is not None:
        settle(writer, components.model)
    state.checkpoint += 1
    output.write(run, state.checkpoint)
    state.gather(process_group)
    if process_group.rank == 0:
        snapshot = take_snapshot(
            state, components.model, components.optimizer, components.shape, with_tables=writer is None
        )
        if writer is not None:
            writer.start(snapshot, _deltas(writer, components.model), shards)
        else:
            step = state.step
            checkpoints.save(snapshot, None if shards is None else lambda folder: shards.save(folder, step))
    process_group.share(None)  # no trainer may pull for the next step before shards have saved this one


def settle(writer: CheckpointWriter, model: nn.Module) -> None:
    """Wait until the checkpoint that is being written is complete, and have the next one begin there.

    Raises:
        CheckpointError: It cannot be written.
    """
    groups = table_groups(model)
    for name, version in writer.wait().items():
        groups[name].mark_saved(version)


def follow(writer: CheckpointWriter, snapshot: Snapshot, model: nn.Module, shards: ShardsOfRun | None = None) -> None:
    """Have the next checkpoint continue the one that was loaded."""
    writer.follow(snapshot, shards)
    for name, group in table_groups(model).items():
        if writer.has_base(name):
            group.mark_saved(group.version)


def _deltas(writer: CheckpointWriter, model: nn.Module) -> dict[str, list[Delta]]:
    return {name: group.deltas(everything=not writer.has_base(name)) for name, group in table_groups(model).items()}


def newest_checkpoint(checkpoints: CheckpointFolder, process_group: ProcessGroup) -> tuple[Snapshot | None, list[str]]:
    """Trainer 0's newest valid checkpoint, with a line about each newer, damaged one, shared with all trainers."""
    if process_group.rank == 0:
        snapshot, refused = checkpoints.load_latest()
        process_group.share(None if snapshot is None else snapshot.number)
        return snapshot, [f"refused a checkpoint, falling back to the previous one: {line}" for line in refused]
    number = process_group.share(None)
    return None if number is None else checkpoints.load(number), []


class SavedState(BaseModel):
    """`TrainingState` in the checkpoint format; see `docs/checkpoints.md`."""

    shape: dict[str, Any]
    step: int = Field(ge=0)
    precision: Precision | None
    learning_rate_schedule: dict[str, Any] | None = None
    cursor: dict[str, Any]
    window: dict[str, Any] | None
    token: dict[str, Any] | None
    replayed: tuple[str, ...]
    published: dict[str, Any] | None = None
    rows: dict[str, int]
    window_rows: dict[str, int]
    seconds: float = Field(ge=0)
    window_seconds: float = Field(ge=0)

    @field_validator("shape")
    @classmethod
    def _space_is_an_earlier_name_of_table(cls, shape: dict[str, Any]) -> dict[str, Any]:
        match shape:
            case {"features": {"sparse": dict(sparse), **others}}:
                renamed = {name: _with_table(feature) for name, feature in sparse.items()}
                return shape | {"features": others | {"sparse": renamed}}
        return shape

    @field_validator("shape")
    @classmethod
    def _earlier_models_have_no_linear_part(cls, shape: dict[str, Any]) -> dict[str, Any]:
        match shape:
            case {"model": {"kind": "dcnv2", **others}}:
                return shape | {"model": {"kind": "dcnv2", "linear": False, **others}}
        return shape


def _with_table(feature: Any) -> Any:
    if not isinstance(feature, dict):
        return feature
    return {"table" if key == "space" else key: value for key, value in feature.items()}


def take_snapshot(
    state: TrainingState, model: nn.Module, optimizer: torch.optim.Optimizer, shape: Any, *, with_tables: bool = True
) -> Snapshot:
    """Copy the contents of a checkpoint.

    Args:
        state: Progress of the run.
        model: The model, with dense parameters and embedding tables.
        optimizer: Optimizer of the dense parameters.
        shape: JSON-able description of the model; `restore` refuses a different one.
        with_tables: Whether to copy all rows of embedding tables.
    """
    metrics = {
        f"{part}.{name}.{key}": array
        for part, of_label in (("running", state.running), ("in_window", state.in_window))
        for name, metric in of_label.items()
        for key, array in metric.state_dict().items()
    }
    metrics |= {f"baseline.{key}": array for key, array in state.baseline.state_dict().items()}
    if state.running_baseline is not None:
        of_run = state.running_baseline.state_dict()
        metrics |= {f"running_baseline.{state.baseline_name}.{key}": array for key, array in of_run.items()}
    arrays = {"dense": dense_parameters(model), "optimizer": optimizer_arrays(optimizer), "metrics": metrics}
    copies = {group: {name: np.array(array) for name, array in of.items()} for group, of in arrays.items()}
    values = state_values(state, shape)
    return Snapshot(state.checkpoint, values, copies, _columns_of_tables(model) if with_tables else {})


def state_values(state: TrainingState, shape: Any) -> dict[str, Any]:
    """The values of `SavedState` as of now."""
    return {
        "shape": shape,
        "step": state.step,
        "precision": state.precision,
        "learning_rate_schedule": state.schedule,
        "cursor": state.cursor.to_dict(),
        "window": None if state.window is None else state.window.to_dict(),
        "token": state.position,
        "replayed": list(state.replayed),
        "published": state.published,
        "rows": state.rows.to_dict(),
        "window_rows": state.window_rows.to_dict(),
        "seconds": state.seconds,
        "window_seconds": state.window_seconds,
    }


def parameters(model: nn.Module) -> tuple[Columns, dict[str, Columns]]:
    """The dense parameters by name, and the columns of each table group in this process."""
    return dense_parameters(model), _columns_of_tables(model)


def _columns_of_tables(model: nn.Module) -> dict[str, Columns]:
    return {name: group.state_dict() for name, group in table_groups(model).items()}


def dense_parameters(model: nn.Module) -> Columns:
    """The dense parameters and buffers by name."""
    return {name: value.detach().cpu().numpy() for name, value in model.state_dict().items()}


def read_state(snapshot: Snapshot) -> SavedState:
    """The values of a snapshot's state.

    Raises:
        CheckpointError: One is missing or has another type; the message names it.
    """
    try:
        return SavedState.model_validate(snapshot.state)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"checkpoint {snapshot.number}: state.{key}: {first['msg']}") from error


def restore(
    snapshot: Snapshot, state: TrainingState, model: nn.Module, optimizer: torch.optim.Optimizer | None, shape: Any
) -> None:
    """Restore state, model and optimizer from a snapshot.

    Raises:
        CheckpointError: The checkpoint belongs to a different model, or has other features; the message has the first
            difference, or the features.
    """
    values = read_state(snapshot)
    changes = FeatureChanges.between(values.shape, shape, checkpoint=snapshot.number)
    if changes is not None:
        raise CheckpointError(changes.refusal(snapshot.number))
    state.checkpoint, state.step = snapshot.number, values.step
    state.precision, state.schedule = values.precision, values.learning_rate_schedule
    state.cursor = Cursor.from_dict(values.cursor)
    state.window = None if values.window is None else Window.from_dict(values.window)
    state.position = values.token
    state.replayed, state.published = values.replayed, values.published
    state.rows, state.window_rows = RowStats.from_dict(values.rows), RowStats.from_dict(values.window_rows)
    state.seconds, state.window_seconds = values.seconds, values.window_seconds
    saved = snapshot.arrays["metrics"]
    for part, of_label in (("running", state.running), ("in_window", state.in_window)):
        for name, metric in of_label.items():
            metric.load_state_dict({key: saved[f"{part}.{name}.{key}"] for key in metric.state_dict()})
    state.baseline.load_state_dict({key: saved[f"baseline.{key}"] for key in ("bins", "sums")})
    of_run = {key: saved.get(f"running_baseline.{state.baseline_name}.{key}") for key in ("bins", "sums")}
    if state.running_baseline is None or any(array is None for array in of_run.values()):
        state.running_baseline = None
    else:
        state.running_baseline.load_state_dict(of_run)
    load_parameters(snapshot, model)
    if optimizer is not None:
        load_optimizer_arrays(optimizer, snapshot.arrays.get("optimizer", {}))


def load_parameters(snapshot: Snapshot, model: nn.Module) -> None:
    """Load a model's dense parameters and tables from a snapshot.

    Raises:
        CheckpointError: The parameters do not fit the model.
    """
    dense = {name: torch.from_numpy(array.copy()) for name, array in snapshot.arrays.get("dense", {}).items()}
    try:
        model.load_state_dict(dense)
    except RuntimeError as error:
        raise CheckpointError(f"dense parameters: {' '.join(str(error).split())}") from error
    missing = [name for name in table_groups(model) if name not in snapshot.parts and name not in snapshot.columns]
    if missing:
        raise CheckpointError(f"table group {missing[0]}: missing")
    for module, bags in embedding_bags(model).items():
        if bags.table_group is not None:
            name = table_group_name(module)
            bags.load_tables(snapshot.parts.get(name) or [snapshot.columns[name]])


def table_groups(model: nn.Module) -> dict[str, TableGroup]:
    """The table groups in this process by name, which is valid as a folder name."""
    groups = {table_group_name(name): bags.table_group for name, bags in embedding_bags(model).items()}
    return {name: group for name, group in groups.items() if group is not None}


def table_group_name(module: str) -> str:
    """The name of the table group of an `EmbeddingBags`, derived from the module's name."""
    return module.replace(".", "-")
