"""`ServedTables`: the last versions of a model in memory; one of them is served, and each read is of one version."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace.embeddings.changes.delta import Columns
from headrace.embeddings.keys import Keys
from headrace.embeddings.tables.state import TableGroupHeader
from headrace.errors import CheckpointError, HeadraceError, VersionGone
from headrace.publishing.changed_ids import ChangedIds
from headrace.publishing.parts import WHOLE, Part
from headrace.publishing.row_reader import RowReader
from headrace.publishing.versioned_rows import RowArrays, VersionedRows

__all__ = ["ServedTables", "ServedVersion", "View"]

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Headers = Mapping[str, Sequence[TableGroupHeader]]


@dataclass(frozen=True, eq=False)
class ServedVersion:
    """One version in memory, without its rows.

    Attributes:
        version: Number of the version.
        step: Number of optimizer steps of the model.
        cut_at: When its rows were copied, in seconds since 1970.
        dense: Dense parameters and buffers by name, of the same step.
    """

    version: int
    step: int
    cut_at: float
    dense: Columns


class View:
    """A model at one version, which does not change. Thread-safe; it keeps memory in use as long as it is referenced.

    Attributes:
        about: Its version, with the dense parameters.
    """

    def __init__(self, about: ServedVersion, readers: Mapping[str, RowReader], arrays: Mapping[str, RowArrays]) -> None:
        self.about = about
        self._readers, self._arrays = readers, arrays

    @property
    def version(self) -> int:
        """Number of the version."""
        return self.about.version

    @property
    def dense(self) -> Columns:
        """Dense parameters and buffers by name."""
        return self.about.dense

    @property
    def readers(self) -> Mapping[str, RowReader]:
        """What is known of each table group beside its rows."""
        return self._readers

    def read(self, table_group: str, keys: Keys) -> Float32s:
        """Rows of keys, float32 [U, D], as `EmbeddingStore.read` gave them at the trainer after the same step.

        Args:
            table_group: Name of the table group.
            keys: Any keys; ids of direct and hashed tables must be in range. Counts are ignored.
        """
        return self._readers[table_group].read(self._arrays[table_group], self.version, keys)


class ServedTables:
    """The last versions of a model. Any number of threads read, without a lock; one at a time applies versions.

    A read takes `view` once, and so sees one version of all table groups and of the dense parameters. Applying a
    version writes changed rows to places that no view can reach; then a new view has them all at once. Serving an
    earlier version needs nothing but another view. See `docs/design/0026-served-tables.md`.

    Args:
        keep: Number of newest versions in memory, which can be served.
        part: Which rows are kept; reads of others give what ids without a row read, so callers must not ask for them.
    """

    def __init__(self, *, keep: int = 10, part: Part = WHOLE) -> None:
        self.keep, self.part = keep, part
        self._versions: dict[int, ServedVersion] = {}
        self._rows: dict[str, VersionedRows] = {}
        self._readers: dict[int, dict[str, RowReader]] = {}  # by version
        self._changed: dict[int, dict[str, ChangedIds]] = {}  # by version: what it changed
        self._view: View | None = None
        self._others: dict[int, View] = {}  # views of versions that are not served, until the next one is applied
        self._views: deque[tuple[int, weakref.ref[View]]] = deque()  # with numbers, oldest first
        self._num_views = 0
        self._retired: deque[tuple[int, VersionedRows, Int64s]] = deque()  # until views up to a number are gone
        self._changing = threading.Lock()  # held while a version is applied; readers never take it
        self._noting = threading.Lock()  # held for moments
        self._another = threading.Condition(self._noting)  # another view is served

    @property
    def view(self) -> View:
        """The served version.

        Raises:
            HeadraceError: There is none yet.
        """
        view = self._view
        if view is None:
            raise HeadraceError("replica: has no version yet")
        return view

    @property
    def served(self) -> int | None:
        """Number of the served version; None if there is none yet."""
        view = self._view
        return None if view is None else view.version

    @property
    def versions(self) -> list[int]:
        """Versions that can be served, ascending."""
        with self._noting:
            return sorted(self._versions)

    @property
    def num_bytes(self) -> int:
        """Bytes of rows, of all versions, and of the index."""
        return sum(rows.num_bytes for rows in self._rows.values())

    def read(self, table_group: str, keys: Keys) -> Float32s:
        """See `View.read`; of the version that is served when the call begins."""
        return self.view.read(table_group, keys)

    def view_of(self, version: int) -> View:
        """A view of one of `versions`, which need not be the served one.

        Raises:
            VersionGone: The version is not in memory.
        """
        view = self._view
        if view is not None and view.version == version:
            return view
        with self._noting:
            if version not in self._others:
                self._others[version] = self._new_view(version)
            return self._others[version]

    def changed(self, table_group: str, *, since: int, version: int) -> ChangedIds | None:
        """The ids whose rows may differ between two versions; None if that is not known, so that any may.

        Raises:
            VersionGone: The later version is not in memory.
        """
        with self._noting:
            held = sorted(self._versions)
            if version not in self._versions:
                raise _gone(version, held)
            steps = [each for each in held if since < each <= version]
            if since not in self._versions or any(each not in self._changed for each in steps):
                return None
            return ChangedIds.joined([self._changed[each][table_group] for each in steps])

    def apply(
        self,
        about: ServedVersion,
        headers: Headers,
        blocks: Iterable[tuple[str, str, Columns]],
        *,
        everything: bool,
        serve: bool = True,
    ) -> None:
        """Apply a version, in time proportional to the number of its rows; if it fails, nothing has changed.

        Args:
            about: The version, newer than all others.
            headers: The headers of the parts of each table group.
            blocks: What changed since the newest version here, see `publications.Changes`.
            everything: Whether these are all rows.
            serve: Whether to serve it.

        Raises:
            CheckpointError: A block is damaged, or tables differ from those of earlier versions.
        """
        with self._changing:
            newest = max(self._versions, default=0)
            if about.version <= newest:
                raise CheckpointError(f"version {about.version}: is not newer than {newest}, the newest in memory")
            readers = self._prepare(headers)
            for rows in self._rows.values():
                rows.begin(about.version, everything=everything)
            try:
                for table_group, section, columns in blocks:
                    self._write(readers[table_group], self._rows[table_group], section, columns)
                changed = {name: self._complete(readers[name], rows) for name, rows in self._rows.items()}
            except BaseException:
                for rows in self._rows.values():
                    self._retire(rows, rows.abort())
                raise
            with self._noting:
                is_alike = newest > 0 and all(readers[name].is_like(self._readers[newest][name]) for name in readers)
                if is_alike:
                    self._changed[about.version] = changed
                self._versions[about.version], self._readers[about.version] = about, readers
            if serve or self._view is None:
                self.serve(about.version)
            self._forget_oldest()

    def serve(self, version: int) -> None:
        """Serve one of `versions`, from the next read on; takes the same time for any number of rows.

        Raises:
            VersionGone: The version is not in memory.
        """
        with self._noting:
            self._view = self._new_view(version)
            self._another.notify_all()

    def wait(self, known: View | None, *, timeout_s: float | None = None) -> View | None:
        """The served version, as soon as it is another one than `known`, or after a time; None if there is none yet."""
        with self._another:
            self._another.wait_for(lambda: self._view is not known, timeout_s)
            return self._view

    def _new_view(self, version: int) -> View:
        """A new view, while `_noting` is held."""
        about = self._versions.get(version)
        if about is None:
            raise _gone(version, sorted(self._versions))
        view = View(about, self._readers[version], {name: rows.arrays for name, rows in self._rows.items()})
        self._num_views += 1
        self._views.append((self._num_views, weakref.ref(view)))
        return view

    def _write(self, reader: RowReader, rows: VersionedRows, section: str, columns: Columns) -> None:
        """Write the rows of a block that belong to this part."""
        tables, ids = columns["tables"], columns["ids"]
        weights = None if section == "removed" else columns["weights"]
        if self.part.count > 1 and not reader.has_factors:
            mask = self.part.mask(self.part.plan(reader.table_names, reader.num_embeddings), tables, ids)
            tables, ids, weights = tables[mask], ids[mask], None if weights is None else weights[mask]
        rows.write(tables, ids, weights)

    def _complete(self, reader: RowReader, rows: VersionedRows) -> ChangedIds:
        written = rows.arrays.records[rows.complete()]
        num_tables = len(reader.table_names)
        return ChangedIds.of_rows(written["table"], written["id"], num_tables, are_factors=reader.has_factors)

    def _prepare(self, headers: Headers) -> dict[str, RowReader]:
        """The readers of a version, and room for its rows."""
        readers = {name: RowReader(parts) for name, parts in headers.items()}
        if not self._versions:
            self._rows = {name: VersionedRows(reader.width, reader.dtype) for name, reader in readers.items()}
            return readers
        before = self._readers[max(self._versions)]
        differing = set(before) ^ set(readers) or {
            name for name, reader in readers.items() if reader.identity != before[name].identity
        }
        if differing:
            raise CheckpointError(
                f"table group {min(differing)}: differs from that of earlier versions; "
                "restart the replica with a new folder"
            )
        return readers

    def _forget_oldest(self) -> None:
        """Give up the oldest versions beyond `keep`, but never the one that is served or a later one."""
        with self._noting:
            held = sorted(self._versions)
            served = held[-1] if self._view is None else self._view.version
            oldest = min(held[-self.keep :][0], served)
            for version in held:
                if version < oldest:
                    del self._versions[version], self._readers[version]
                    self._changed.pop(version, None)
            self._others.clear()  # they keep places in use
        for rows in self._rows.values():
            self._retire(rows, rows.forget_before(oldest))
        self._reuse()

    def _retire(self, rows: VersionedRows, places: Int64s) -> None:
        with self._noting:  # a view that is created later cannot reach these places
            self._retired.append((self._num_views, rows, places))

    def _reuse(self) -> None:
        with self._noting:
            while self._views and self._views[0][1]() is None:
                self._views.popleft()
            oldest = self._views[0][0] if self._views else self._num_views + 1
        while self._retired and self._retired[0][0] < oldest:
            _, rows, places = self._retired.popleft()
            rows.give_back(places)


def _gone(version: int, held: Sequence[int]) -> VersionGone:
    return VersionGone(
        f"version {version}: is not in memory, expected one of "
        f"{', '.join(map(str, held)) or 'none: no version was applied yet'}"
    )
