"""`Sink`: a system that keeps a copy of the newest version, and knows which one it has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

from headrace.embeddings.changes.delta import Columns
from headrace.embeddings.storage.row_formats import as_tensor, to_float32
from headrace.publishing.publications import Publication, PublicationFolder

__all__ = ["Cursor", "Sink", "rows_by_table"]


@dataclass(frozen=True)
class Cursor:
    """The version that a sink has, completely, of a lineage."""

    lineage: str
    version: int


class Sink(Protocol):
    """A copy of versions elsewhere.

    The cursor is stored with the rows, and moves together with them: after a kill, or if the connection is lost at any
    moment, `cursor` says which version is there, and `write` continues from it.
    """

    @property
    def name(self) -> str:
        """Where it is, without secrets, for messages."""

    def cursor(self) -> Cursor | None:
        """What it has; None for nothing.

        Raises:
            StorageError: It cannot be reached or read now.
            ConfigError: It has something else.
        """

    def write(self, folder: PublicationFolder, publication: Publication, after: Cursor | None) -> None:
        """Write a version, all of it or nothing.

        Args:
            folder: Has the version, and what changed.
            publication: The version.
            after: What the sink must have now, an earlier version of the same lineage; None for nothing.

        Raises:
            StorageError: It cannot be written now, or the sink has another version.
            TornCheckpoint: The folder lacks something, or it is damaged.
        """

    def close(self) -> None:
        """Release connections."""


def rows_by_table(
    publication: Publication, table_group: str, columns: Columns
) -> Iterator[tuple[str, npt.NDArray[np.int64], npt.NDArray[np.float32] | None]]:
    """Split a block of changes by table.

    Args:
        publication: The version.
        table_group: Table group of the block.
        columns: The block, ascending by table.

    Yields:
        Name of the table, ids int64 [R], and weights float32 [R, D]; None for removed ids.
    """
    header, tables = publication.tables[table_group][0], columns["tables"]
    bounds = np.searchsorted(tables, np.arange(len(header.tables) + 1)).tolist()
    for number, (begin, end) in enumerate(pairwise(bounds)):
        if begin == end:
            continue
        table = header.tables[number]
        part = {name: column[begin:end] for name, column in columns.items()}
        weights = _as_float32(part, table["rows"]) if len(part) > 2 else None
        yield str(table["name"]), part["ids"], weights


def _as_float32(columns: Columns, row_format: str) -> npt.NDArray[np.float32]:
    weights = columns["weights"]
    if weights.dtype == np.float32:
        return np.ascontiguousarray(weights, dtype=np.float32)
    widened: npt.NDArray[np.float32] = to_float32(
        as_tensor(np.ascontiguousarray(weights), row_format), row_format
    ).numpy()
    return widened
