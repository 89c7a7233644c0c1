"""Which saved partition becomes which, and how ids move if a table group is loaded into other partitions.

Saved partitions with the same number and owners are loaded as they are, bit for bit. Others are made anew:

    rows        of an id stay with it. If they do not fit, the most important ones stay.
    shared rows continue from the one that was trained on most occurrences, among those that had any of its ids
    sketch      begins empty: its slots do not know the partition of their id
    consumers   of changes read everything again, because shared rows have other numbers
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from headrace.embeddings.shards.plan import ROW_WISE
from headrace.embeddings.tables.budgeted_table_group import BudgetedTableGroup
from headrace.embeddings.tables.lifecycle.importance import ImportanceRetention
from headrace.embeddings.tables.partitions import Partition, partition_count_of
from headrace.embeddings.tables.state import Columns, TableGroupHeader, upgraded
from headrace.errors import CheckpointError

__all__ = ["states_for"]

NOT_OF_ROWS = ("retention.", "pending.", "removed.")

Int64s = npt.NDArray[np.int64]


def states_for(saved: Sequence[Columns], parts: Mapping[int, BudgetedTableGroup]) -> dict[int, tuple[Columns, bool]]:
    """The states of some partitions, from those of all saved ones; and whether each is one of them.

    Args:
        saved: A state for each saved partition, in order.
        parts: New groups by number of the partition.

    Raises:
        CheckpointError: A saved partition is missing, partitions were saved at different steps, or ids would have to
            move to other partitions, which the policy does not support.
    """
    saved = [upgraded(state) for state in saved]
    headers = [TableGroupHeader.read(state) for state in saved]
    count = partition_count_of(saved)
    if len(saved) != count:
        raise CheckpointError(f"table group: found {len(saved)} partitions, expected {count}")
    clocks = {(header.step, header.version, *header.window_starts) for header in headers}
    if len(clocks) != 1:
        raise CheckpointError(f"table group: partitions were saved at steps {sorted(clocks)}, expected one step")
    found = {}
    for number, group in parts.items():
        partition = group.partition
        assert partition is not None, "a group of all ids loads its state itself"
        same = [state for state, header in zip(saved, headers, strict=True) if partition.is_saved_as(header.partition)]
        if same:
            found[number] = same[0], True
        elif isinstance(group.retention, ImportanceRetention):
            found[number] = _moved(saved, headers, group, partition), False
        else:
            raise CheckpointError(
                f"table group: was saved in {count} partitions, expected {partition.plan.partition_count}; ids cannot "
                f"move under policy {group.policy}, so set embeddings.partitions: {count}"
            )
    return found


def _moved(
    saved: Sequence[Columns], headers: Sequence[TableGroupHeader], group: BudgetedTableGroup, partition: Partition
) -> Columns:
    """The state of a partition whose ids were in others."""
    num_tables, retention = group.num_tables, group.retention
    assert isinstance(retention, ImportanceRetention)
    first_row = 1 + group.shared.num_rows
    columns = {
        name: np.concatenate([state[name] for state in saved])
        for name in saved[0]
        if name not in ("header", "rows") and not name.startswith(NOT_OF_ROWS)
    }
    importance = np.concatenate([_importance_of(state, num_tables) for state in saved])
    tables, ids = columns["tables"], columns["ids"]
    own = np.flatnonzero(tables < num_tables)
    mine = own[partition.plan.partitions_of(tables[own], ids[own]) == partition.number]
    mine = np.sort(mine[np.argsort(-importance[mine], kind="stable")[: group.plan.num_rows]])
    shared, shared_rows = _shared_rows(columns, headers, group, partition)
    places = np.concatenate([shared, mine])
    kept = {name: column[places] for name, column in columns.items()}
    kept["tables"][: len(shared)], kept["ids"][: len(shared)] = group.shared.owners(shared_rows)
    of_rows = retention.columns()
    of_rows["retention.importance"][: len(mine)] = importance[mine]
    norms = np.sum([state["retention.norms"] for state in saved], axis=0)
    of_rows["retention.norms"] = norms / partition.plan.partition_count
    age, _, cut = np.mean([state["retention.clock"] for state in saved], axis=0)
    of_rows["retention.clock"] = np.array([age, 0, cut], dtype=np.float64)
    header = replace(
        headers[0],
        tables=[*headers[0].tables[:num_tables], *TableGroupHeader.of(group.tables[num_tables:], group.seed).tables],
        version=headers[0].version + 1,
        cursors={},
        removed_from=headers[0].version + 1,
        partition=partition.to_dict(group.plan),
    )
    nothing = {name: saved[0][name][:0] for name in saved[0] if name.startswith(("pending.", "removed."))}
    rows = np.concatenate([shared_rows, first_row + np.arange(len(mine))])
    return {"header": header.to_column(), "rows": rows, **kept, **of_rows, **nothing}


def _importance_of(state: Columns, num_tables: int) -> npt.NDArray[np.float32]:
    """Importance of the id of each saved row, float32 [R]; 0 of shared rows."""
    header = TableGroupHeader.read(state)
    count = 1 if header.partition is None else header.partition["count"]
    first_row = 1 + sum(table["num_embeddings"] for table in header.tables[num_tables:]) // count
    importance = np.zeros(len(state["rows"]), dtype=np.float32)
    own = state["tables"] < num_tables
    importance[own] = state["retention.importance"][state["rows"][own] - first_row]
    return importance


def _shared_rows(
    columns: Columns, headers: Sequence[TableGroupHeader], group: BudgetedTableGroup, partition: Partition
) -> tuple[Int64s, Int64s]:
    """Places among saved rows of those that continue as shared rows, and their rows; ascending."""
    num_tables, number, count = group.num_tables, partition.number, partition.plan.partition_count
    num_saved = len(headers)
    owners = [ROW_WISE] * num_tables if headers[0].partition is None else headers[0].partition["owners"]
    places, rows = [], []
    for table in range(num_tables):
        size = int(group.shared.sizes[table])
        saved_size = headers[0].tables[num_tables + table]["num_embeddings"] // num_saved
        found = np.flatnonzero(columns["tables"] == num_tables + table)
        parts, numbers = np.divmod(columns["ids"][found], saved_size)
        if owners[table] == ROW_WISE == partition.plan.owners[table]:
            had_ids = (parts * count < (number + 1) * num_saved) & (number * num_saved < (parts + 1) * count)
        else:  # all ids of the table are or were in one partition
            had_ids = np.ones(len(found), dtype=np.bool_) if owners[table] == ROW_WISE else parts == owners[table]
        for each in range(size):
            overlaps = (numbers * size < (each + 1) * saved_size) & (each * saved_size < (numbers + 1) * size)
            candidates = found[had_ids & overlaps]
            if len(candidates):
                places.append(int(candidates[np.argmax(columns["frequency"][candidates])]))
                rows.append(int(group.shared.first_rows[table]) + each)
    return np.array(places, dtype=np.int64), np.array(rows, dtype=np.int64)
