"""Changes the features of a trained run, in a checkpoint of its own.

    dense parameters    weights and optimizer state of inputs that stay are kept, see `carry_over`
    embedding tables    tables of the same name keep everything; others begin anew, or are dropped

The change is a checkpoint, so a run that is killed afterwards resumes like any other, and shards load their parts as
usual. A run that is killed before it is complete has not changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from headrace.embeddings import embedding_bags
from headrace.embeddings.shards.shard import part_folder
from headrace.embeddings.tables.parts import header_with_tables, rows_of_tables, with_tables
from headrace.embeddings.tables.state import Columns, TableGroupHeader
from headrace.errors import CheckpointError
from headrace.files import write_array
from headrace.messages import count_of, shorten_list
from headrace.training.carry_over import carry_over_dense
from headrace.training.checkpoint import CheckpointFolder, Snapshot
from headrace.training.commits import read_state, table_group_name
from headrace.training.components import JobComponents
from headrace.training.feature_changes import FeatureChanges
from headrace.training.job import JobConfig
from headrace.training.process_group import ProcessGroup
from headrace.training.run_folder import RunFolder

__all__ = ["with_job_features"]

Change = Mapping[str, tuple[Any, Any]]
"""Old and new values by name, as in a `Decision`."""


def with_job_features(
    snapshot: Snapshot,
    job: JobConfig,
    components: JobComponents,
    *,
    may_change: bool,
    run: RunFolder,
    checkpoints: CheckpointFolder,
    process_group: ProcessGroup,
    tell: Callable[[str, Change], object],
) -> Snapshot:
    """The snapshot if it has the job's features, else that of a new checkpoint that has them. A collective call.

    Args:
        snapshot: The newest checkpoint of the run.
        job: The resolved job.
        components: The job's components, not trained yet.
        may_change: Whether the user asked for a change of the features.
        run: Folder of this trainer's output; output newer than the snapshot is moved aside before a change.
        checkpoints: Checkpoint folder of the run, written by trainer 0.
        process_group: The trainers.
        tell: Called with a line about each thing that is kept, begins anew or is dropped, and the change of a
            `Decision`.

    Raises:
        CheckpointError: The checkpoint belongs to another model, or the features differ and must not change.
        ConfigError: The model's `feature_axes` do not fit its parameters.
    """
    changes = FeatureChanges.between(read_state(snapshot).shape, components.shape, checkpoint=snapshot.number)
    if changes is None:
        if may_change:
            tell("features: those of the checkpoint, nothing to change", {})
        return snapshot
    if not may_change:
        raise CheckpointError(changes.refusal(snapshot.number))
    dense = carry_over_dense(snapshot, job, components, changes)
    table_groups = _table_groups(snapshot, components.model, job.training.seed)
    tell(f"features: {changes}", _change(changes))
    tell(_told_of_tables(snapshot, changes), {})
    tell(dense.told, {})

    if moved := run.rewind(snapshot.number):
        tell(run.describe_rewound(moved), {})
    process_group.total([np.zeros(1)])  # no trainer has output left that the new checkpoint would seem to commit
    if process_group.rank == 0:
        arrays = snapshot.arrays | {"dense": dense.parameters, "optimizer": dense.optimizer}
        state = snapshot.state | {"shape": components.shape, "published": None}  # keys have other tables
        changed = Snapshot(snapshot.number + 1, state, arrays)
        checkpoints.save(changed, lambda folder: _write_tables(folder, snapshot, table_groups))
    process_group.share(None)
    now = snapshot.number + 1
    tell(f"checkpoint {now} has the changed features, checkpoint {snapshot.number} the earlier ones", {})
    return checkpoints.load(now)


def _change(changes: FeatureChanges) -> Change:
    """The names of features before and now, for kinds that changed."""
    return {
        f"{section} features": (shorten_list(names, limit=100), shorten_list(changes.now[section], limit=100))
        for section, names in changes.was.items()
        if names != changes.now[section]
    }


def _table_groups(snapshot: Snapshot, model: nn.Module, seed: int) -> dict[str, TableGroupHeader]:
    """The headers of the job's table groups, which the snapshot's are to become.

    Raises:
        CheckpointError: A table group is missing, or a table that is kept has other settings.
    """
    headers = {
        table_group_name(name): TableGroupHeader.of(bags.tables, seed) for name, bags in embedding_bags(model).items()
    }
    for name, header in headers.items():
        states = _states(snapshot, name)
        if not states:
            raise CheckpointError(f"table group {name}: missing")
        for state in states:
            header_with_tables(state, header)
    return headers


def _states(snapshot: Snapshot, table_group: str) -> list[Columns]:
    """The columns of a table group: one for each part if shards saved it."""
    if table_group in snapshot.parts:
        return snapshot.parts[table_group]
    return [snapshot.columns[table_group]] if table_group in snapshot.columns else []


def _write_tables(folder: Path, snapshot: Snapshot, table_groups: Mapping[str, TableGroupHeader]) -> None:
    """Write a snapshot's table groups with other tables into a folder, one column at a time to save memory."""
    for name, group in table_groups.items():
        states = _states(snapshot, name)
        for number, state in enumerate(states):
            is_part = name in snapshot.parts
            place = part_folder(folder, name, number, len(states)) if is_part else folder / "tables" / name
            place.mkdir(parents=True)
            header = header_with_tables(state, group)
            columns: Iterable[tuple[str, NDArray[Any]]] = (
                state.items() if header is None else with_tables(state, header)
            )
            for column, array in columns:
                write_array(place / f"{column}.npy", array)


def _told_of_tables(snapshot: Snapshot, changes: FeatureChanges) -> str:
    table_groups = [*snapshot.columns, *snapshot.parts]
    rows: Counter[str] = Counter()
    for state in _states(snapshot, table_groups[0]) if table_groups else ():
        rows.update(rows_of_tables(state))
    told = [
        ("kept", [f"{table} ({count_of(rows[table], 'row')})" for table in changes.kept_tables]),
        ("new", changes.new_tables),
        ("dropped", [f"{table} ({count_of(rows[table], 'row')})" for table in changes.dropped_tables]),
    ]
    return "embedding tables: " + "; ".join(f"{what}: {shorten_list(tables)}" for what, tables in told if tables)
