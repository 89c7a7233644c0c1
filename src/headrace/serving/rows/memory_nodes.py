"""`MemoryNodes`: rows from replicas, each of which has all rows or a part of them (DisaggRec's memory nodes)."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from headrace.embeddings.keys import Keys
from headrace.errors import PublishingError
from headrace.publishing.changed_ids import ChangedIds
from headrace.publishing.client import PublicationClient
from headrace.publishing.parts import Part
from headrace.publishing.row_messages import pack_changed_request, pack_keys, unpack_changed, unpack_rows
from headrace.publishing.row_reader import RowReader
from headrace.publishing.row_service import CHANGED_ROWS, READ_ROWS

__all__ = ["MemoryNodes"]

STATUS_S = 1.0
"""Seconds within which a node has to say what it serves; else it is not asked for rows."""

Float32s = npt.NDArray[np.float32]


class MemoryNodes:
    """A `RowSource` over several replicas. Replicas with the same part take turns, and stand in for each other.

    Args:
        clients: The replicas.
    """

    def __init__(self, clients: Sequence[PublicationClient]) -> None:
        self._clients = list(clients)
        self._parts: dict[Part, list[PublicationClient]] = {}
        self._readers: Mapping[str, RowReader] = {}
        self._turns = itertools.count()
        self._pool = ThreadPoolExecutor(max_workers=max(len(self._clients), 1), thread_name_prefix="rows")

    @property
    def clients(self) -> list[PublicationClient]:
        """The replicas, in turn another one first."""
        first = next(self._turns) % len(self._clients)
        return self._clients[first:] + self._clients[:first]

    def newest(self) -> int:
        """The newest version that every part serves, of which one replica each has to answer; 0 if there is none."""
        served: dict[Part, list[int]] = {}
        parts: dict[Part, list[PublicationClient]] = {}
        for client in self._clients:
            try:
                status = json.loads(client.act("status", {}, timeout_s=STATUS_S))
                part = Part.of(status.get("part", "1/1"))
            except (PublishingError, ValueError):
                continue
            if status.get("served"):
                served.setdefault(part, []).append(int(status["served"]))
                parts.setdefault(part, []).append(client)
        if not parts or len(parts) != next(iter(parts)).count:
            return 0
        self._parts = parts
        return min(max(versions) for versions in served.values())

    def use(self, readers: Mapping[str, RowReader]) -> None:
        """Set what is known of table groups beside their rows, from which it follows which part has a key."""
        self._readers = readers

    def read(self, version: int, table_group: str, keys: Keys) -> Float32s:
        """See `RowSource.read`."""
        parts = self._parts
        if len(parts) == 1:
            return self._read(next(iter(parts.values())), version, table_group, keys)
        reader, some = self._readers[table_group], next(iter(parts))
        owners = some.plan(reader.table_names, reader.num_embeddings).owners_of(keys.tables, keys.ids)
        places = {part: np.flatnonzero(owners == part.number) for part in parts}
        rows = np.empty((len(keys), reader.embedding_dim), np.float32)
        asked = {
            part: self._pool.submit(self._read, parts[part], version, table_group, _taken(keys, where))
            for part, where in places.items()
            if len(where)
        }
        for part, reading in asked.items():
            rows[places[part]] = reading.result()
        return rows

    def changed(self, table_group: str, *, since: int, version: int) -> ChangedIds | None:
        """The ids whose rows may differ between two versions; None if any may.

        Raises:
            PublishingError, VersionGone: As for `read`.
        """
        message = pack_changed_request(table_group, since, version)
        found = [unpack_changed(_ask(clients, CHANGED_ROWS, message)) for clients in self._parts.values()]
        known = [each for each in found if each is not None]
        return ChangedIds.joined(known) if len(known) == len(found) else None

    def close(self) -> None:
        """Close the connections."""
        self._pool.shutdown()
        for client in self._clients:
            client.close()

    def _read(self, clients: Sequence[PublicationClient], version: int, table_group: str, keys: Keys) -> Float32s:
        first = next(self._turns) % len(clients)
        answer = _ask([*clients[first:], *clients[:first]], READ_ROWS, pack_keys(table_group, version, keys))
        return unpack_rows(answer, len(keys))


def _ask(clients: Sequence[PublicationClient], action: str, message: bytes) -> bytes:
    """The answer of the first replica that has one."""
    last: Exception | None = None
    for client in clients:
        try:
            return client.act_raw(action, message)
        except PublishingError as error:
            last = error
    assert last is not None
    raise last


def _taken(keys: Keys, places: npt.NDArray[np.int64]) -> Keys:
    return Keys(keys.tables[places], keys.ids[places], keys.counts[places])
