"""`Verification`: trains every row a second time, without placement, and compares: `placement: {verify: true}`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.embeddings.keys import Keys
from headrace.embeddings.shards.table_group import collisionless_tables
from headrace.embeddings.stores.remote import RemoteStore
from headrace.embeddings.tables.key_states import KeyStates
from headrace.embeddings.tables.table_group import TableGroup
from headrace.errors import HeadraceError
from headrace.placement.key_entries import KeyEntries

__all__ = ["Verification"]

Float32s = npt.NDArray[np.float32]


class Verification:
    """All rows of a session as serial steps train them, in the memory of this process.

    Args:
        remote: The shards. A key is fetched when it is first seen, before this trainer has returned anything of it.
        version: Version of the table group at the start of the session.
        window_starts: Start versions of its recent windows.
    """

    def __init__(self, remote: RemoteStore, *, version: int, window_starts: list[int]) -> None:
        tables = collisionless_tables(remote.spec)
        self._remote = remote
        self._group = TableGroup(tables, seed=remote.spec.seed)
        self._group.start_at(step=remote.step, version=version, window_starts=window_starts)
        self._known = KeyEntries()
        self._compared_to(version)

    def check_read(self, keys: Keys, rows: Float32s) -> None:
        """Compare rows float32 [U, dim] with those that a serial step reads.

        Raises:
            HeadraceError: A row is stale; the text names table and id.
        """
        self.meet(keys)
        wrong = np.flatnonzero((self._group.read(keys) != rows).any(axis=1))
        if len(wrong):
            raise self._error(keys, wrong, f"{len(wrong)} of {len(keys)} rows are not those that serial steps read")

    def update(self, keys: Keys, gradients: Float32s, *, num_rows: int, lr_factor: float) -> None:
        """Apply the next step."""
        self.meet(keys)
        self._group.update(keys, gradients, num_rows=num_rows, lr_factor=lr_factor)

    def evict(self, keys: Keys) -> None:
        """Evict ids."""
        self.meet(keys)
        self._group.evict(keys)

    def end_window(self) -> None:
        """End a window."""
        self._group.end_window()

    def meet(self, *parts: Keys) -> None:
        """Fetch the states of keys that were not seen before; with several trainers, those of all.

        Every trainer meets the keys of a step before it sends its gradients, so none can have returned them.
        """
        for keys in parts:
            new = keys.take(np.flatnonzero(self._known.find(keys) == 0))
            if not len(new):
                continue
            self._known.add(new)
            for places, states in self._remote.fetch(new).result():
                step, version = self._group.step, self._group.version
                self._group.set_states(new.take(places), states, step=step, version=version)

    def check_returned(self, after: Sequence[int] = ()) -> None:
        """Compare the rows in the shards with serial ones, after all changed rows were returned.

        Args:
            after: The marks of the returns of all trainers, see `RemoteStore.fetch`.

        Raises:
            HeadraceError: A change was lost; the text names table and id.
        """
        for block in self._group.changes(self._returned):
            keys = Keys(block.tables, block.ids, np.zeros(len(block.ids), dtype=np.int32))
            keys = keys.take(np.argsort(keys.tables, kind="stable"))
            expected, lost = self._group.states(keys), np.zeros(len(keys), dtype=np.bool_)
            for places, states in self._remote.fetch(keys, after=after).result():
                lost[places] = _differ(states, expected.take(places, len(keys)), len(places))
            if lost.any():
                raise self._error(keys, np.flatnonzero(lost), f"{lost.sum()} changes are not in their shard")
        self._compared_to(self._group.version)

    def _compared_to(self, version: int) -> None:
        self._returned = version
        self._group.acknowledge("returned", version)

    def _error(self, keys: Keys, places: npt.NDArray[np.int64], what: str) -> HeadraceError:
        table = self._group.tables[int(keys.tables[places[0]])].name
        return HeadraceError(f"placement.verify: {what}, the first of table {table}, id {keys.ids[places[0]]}")


def _differ(states: KeyStates, others: KeyStates, num_keys: int) -> npt.NDArray[np.bool_]:
    """Whether the states of each of some keys differ."""
    differ = np.zeros(num_keys, dtype=np.bool_)
    for name, column in states.columns.items():
        unequal = _spread(column, states.places, num_keys) != _spread(others.columns[name], others.places, num_keys)
        differ |= unequal.reshape(num_keys, -1).any(axis=1)
    for name in ("sightings", "last_seen"):
        mine = _spread(getattr(states, name), states.waiting, num_keys)
        differ |= mine != _spread(getattr(others, name), others.waiting, num_keys)
    return differ


def _spread(column: npt.NDArray[Any], places: npt.NDArray[np.int64], num_keys: int) -> npt.NDArray[Any]:
    """A column of some keys as one of all keys, zero for the others."""
    spread = np.zeros((num_keys, *column.shape[1:]), dtype=column.dtype)
    spread[places] = column
    return spread
