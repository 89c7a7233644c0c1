"""`PartitionedTableGroup`: the partitions of a table group under a budget that are in one process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from headrace.embeddings.changes.delta import Delta
from headrace.embeddings.changes.log import CHECKPOINTS, RowBlock
from headrace.embeddings.keys import Keys
from headrace.embeddings.shards.plan import ShardingPlan
from headrace.embeddings.storage.protocol import MakeStorage, RowStorage
from headrace.embeddings.tables.budgeted_table_group import BudgetedTableGroup, TableRows
from headrace.embeddings.tables.key_states import KeyStates
from headrace.embeddings.tables.lifecycle.rebalancing import Rebalancing, rebalance
from headrace.embeddings.tables.lifecycle.row_retention import Demand
from headrace.embeddings.tables.partitions import joined_columns, separated_columns
from headrace.embeddings.tables.repartitioning import states_for
from headrace.embeddings.tables.state import Columns
from headrace.embeddings.tables.table_group import TableGroup

__all__ = ["PartitionedTableGroup"]

Int64s = npt.NDArray[np.int64]


class PartitionedTableGroup(TableGroup):
    """A table group whose ids are divided into partitions, see `partitions`; each call goes to those of its keys.

    All partitions make every step, also those without any of its keys. So each of them is where it would be in a
    process of its own.

    Args:
        plan: Assignment of keys to partitions, and of these to shards.
        parts: The partitions in this process by number, ascending.
        rebalances: Whether the end of a window also decides on budgets, because all partitions are here. Those of
            shards are told, see `resize`.

    Attributes:
        plan, parts: As given.
        total_bytes: Budget of all partitions, here and elsewhere.
        rebalancing: The newest decision on budgets.
    """

    def __init__(self, plan: ShardingPlan, parts: dict[int, BudgetedTableGroup], *, rebalances: bool) -> None:
        self.plan = plan
        self.parts = parts
        self.rebalancing: Rebalancing | None = None
        self._rebalances = rebalances
        self._groups = list(parts.values())
        first = self._groups[0]
        self.tables, self.num_tables, self.seed = first.tables, first.num_tables, first.seed
        self.embedding_dim = first.embedding_dim
        assert first.partition is not None
        self.total_bytes = first.partition.total_bytes

    @property
    def step(self) -> int:  # type: ignore[override]
        """See `TableGroup`."""
        return self._groups[0].step

    @property
    def version(self) -> int:  # type: ignore[override]
        """See `TableGroup`."""
        return self._groups[0].version

    @property
    def window_starts(self) -> list[int]:
        """See `TableGroup.window_starts`."""
        return self._groups[0].window_starts

    @property
    def num_rows(self) -> int:
        """See `TableGroup.num_rows`."""
        return sum(group.num_rows for group in self._groups)

    @property
    def num_ids(self) -> int:
        """See `TableGroup.num_ids`."""
        return sum(group.num_ids for group in self._groups)

    @property
    def num_bytes(self) -> int:
        """Bytes of all partitions here, see `BudgetedTableGroup.num_bytes`."""
        return sum(group.num_bytes for group in self._groups)

    @property
    def budgets(self) -> dict[int, int]:
        """Budget of each partition in bytes."""
        return {number: group.plan.budget_bytes for number, group in self.parts.items()}

    def rows_by_table(self) -> dict[str, TableRows]:
        """The rows of each table by its name, of all partitions here."""
        return TableRows.total(group.rows_by_table() for group in self._groups)

    @property
    def device(self) -> torch.device | None:
        """See `TableGroup.device`."""
        return self._groups[0].device

    @property
    def storages(self) -> list[RowStorage]:
        """See `TableGroup.storages`."""
        return [group.storage for group in self._groups]

    @property
    def reads_ahead(self) -> bool:
        """See `TableGroup.reads_ahead`."""
        return self._groups[0].reads_ahead

    def read(self, keys: Keys) -> Any:
        """See `TableGroup.read`."""
        if len(self._groups) == 1:
            return self._groups[0].read(keys)
        rows: Any = None
        for group, places in self._divide(keys):
            part = group.read(keys.take(places))
            if rows is None:
                shape = (len(keys), self.embedding_dim)
                rows = np.empty(shape, np.float32) if group.device is None else torch.empty(shape, device=group.device)
            rows[_like(rows, places)] = part
        return rows

    def update(self, keys: Keys, gradients: Any, *, num_rows: int = 1, lr_factor: float = 1.0) -> None:
        """See `TableGroup.update`."""
        for group, places in self._divide(keys):
            part = gradients if len(self._groups) == 1 else gradients[_like(gradients, places)]
            group.update(keys.take(places), part, num_rows=num_rows, lr_factor=lr_factor)

    def announce(self, keys: Keys, *, ahead: int) -> bool:
        """See `TableGroup.announce`."""
        return all(group.announce(keys.take(places), ahead=ahead) for group, places in self._divide(keys))

    def end_window(self) -> int:
        """See `TableGroup.end_window`; also divides the budget anew, if all partitions are here."""
        freed = sum(group.end_window() for group in self._groups)
        if not self._rebalances:
            return freed
        numbers = list(self.parts)
        budgets, fixed, demands = zip(*(self.demand(number) for number in numbers), strict=True)
        self.rebalancing = rebalance(budgets, fixed, demands)
        return freed + self.resize(dict(zip(numbers, self.rebalancing.budgets, strict=True)))

    def demand(self, number: int) -> tuple[int, int, Demand]:
        """Arguments of `rebalance` about a partition: its budget, bytes that are not for rows, and its demand."""
        group = self.parts[number]
        return group.plan.budget_bytes, group.plan.fixed_bytes, group.demand()

    def least_bytes(self, number: int) -> int:
        """The smallest budget that a partition can have."""
        plan = self.parts[number].plan
        return plan.fixed_bytes + int(plan.row_bytes + plan.index_bytes(1)) + 1

    def resize(self, budgets: dict[int, int]) -> int:
        """Set the budgets of the partitions here; those that become smaller come first, so that their sum never grows.

        Args:
            budgets: Bytes by number of the partition; others stay.

        Returns:
            Number of ids that lost their row.
        """
        changed = {number: size for number, size in budgets.items() if size != self.budgets[number]}
        in_order = sorted(changed, key=lambda number: (changed[number] > self.budgets[number], number))
        return sum(self.parts[number].resize(changed[number]) for number in in_order)

    def evict(self, keys: Keys) -> int:
        """See `TableGroup.evict`."""
        return sum(group.evict(keys.take(places)) for group, places in self._divide(keys))

    def changes(self, since: int = 0) -> Iterator[RowBlock]:
        """See `TableGroup.changes`: the blocks of one partition after the other."""
        for group in self._groups:
            yield from group.changes(since)

    def acknowledge(self, consumer: str, version: int) -> None:
        """See `TableGroup.acknowledge`."""
        for group in self._groups:
            group.acknowledge(consumer, version)

    @property
    def num_parts(self) -> int:
        """See `TableGroup.num_parts`."""
        return len(self._groups)

    def deltas(self, *, everything: bool = False, consumer: str = CHECKPOINTS) -> list[Delta]:
        """See `TableGroup.deltas`."""
        return [group.delta(everything=everything, consumer=consumer) for group in self._groups]

    def mark_saved(self, version: int, consumer: str = CHECKPOINTS) -> None:
        """See `TableGroup.mark_saved`."""
        for group in self._groups:
            group.mark_saved(version, consumer)

    def states(self, keys: Keys) -> KeyStates:
        """Refused, see `BudgetedTableGroup.states`."""
        return self._groups[0].states(keys)

    def set_states(self, keys: Keys, states: KeyStates, *, step: int, version: int) -> None:
        """Refused, see `BudgetedTableGroup.states`."""
        self._groups[0].states(keys)

    def part_states(self) -> dict[int, Columns]:
        """The state of each partition, see `TableGroup.state_dict`."""
        return {number: group.state_dict() for number, group in self.parts.items()}

    def state_dict(self) -> Columns:
        """The states of all partitions as one, see `joined_columns`."""
        return joined_columns(list(self.part_states().values()))

    def load_state_dict(self, state: Columns) -> None:
        """Load a state from `state_dict()`; training continues bit-identically."""
        self.load_states(separated_columns(state))

    def load_states(self, states: Sequence[Columns]) -> None:
        """Load the partitions here from the states of all saved ones, see `states_for`."""
        for number, (state, is_same) in states_for(states, self.parts).items():
            group = self.parts[number]
            group.load_state_dict(state)
            if not is_same:
                group.changelog.forget_saved(group.version + 1)  # no checkpoint can be continued

    def moved_to(self, make_storage: MakeStorage) -> TableGroup:
        """See `TableGroup.moved_to`."""
        parts = {number: group.moved_to(make_storage) for number, group in self.parts.items()}
        return PartitionedTableGroup(self.plan, parts, rebalances=self._rebalances)  # type: ignore[arg-type]

    def _divide(self, keys: Keys) -> Iterator[tuple[BudgetedTableGroup, Any]]:
        """Each partition here with the positions of its keys."""
        if len(self._groups) == 1:
            yield self._groups[0], slice(None)
            return
        owners = self.plan.partitions_of(keys.tables, keys.ids)
        for number, group in self.parts.items():
            yield group, np.flatnonzero(owners == number)


def _like(rows: Any, places: Int64s) -> Any:
    """Positions to index an array or a tensor."""
    return torch.from_numpy(places).to(rows.device) if isinstance(rows, torch.Tensor) else places
