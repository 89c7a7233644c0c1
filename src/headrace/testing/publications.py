"""`RowPublisher`: publishes rows of a dictionary, without a model or a trainer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from headrace.embeddings import TableConfig
from headrace.embeddings.changes.chains import Chain, Chains
from headrace.embeddings.changes.delta import Columns, Delta
from headrace.embeddings.changes.segments import write_delta
from headrace.embeddings.storage.row_formats import RowFormat
from headrace.embeddings.tables.state import TableGroupHeader
from headrace.publishing.publications import DENSE, JOB, Publication, PublicationFolder

__all__ = ["GROUPS", "RowPublisher"]

GROUPS = {"embeddings": 1, "linear": -1}
"""Table groups, and the sign of their rows."""
Key = tuple[int, int]
"""Number of the table, and id."""


class RowPublisher:
    """Publishes versions of two tables, `items` and `users`, of table groups `embeddings` and `linear`.

    Tables of both groups have the same names and ids, as those of a DeepFM; rows of `linear` are negative.

    Args:
        path: Folder of the publications.
        embedding_dim: Dimension of rows.
        lineage: Lineage of its versions.
        as_int8: Whether to publish rows as int8.

    Attributes:
        folder: The publications.
        rows: Rows of `embeddings` in the newest version, float32 [D].
        version: The newest version.
    """

    def __init__(self, path: Path, *, embedding_dim: int = 4, lineage: str = "a", as_int8: bool = False) -> None:
        row_format: RowFormat = "fp32"
        tables = [TableConfig(name=name, embedding_dim=embedding_dim, rows=row_format) for name in ("items", "users")]
        self.folder = PublicationFolder(path)
        self.rows: dict[Key, np.ndarray] = {}
        self.version = 0
        self._header = TableGroupHeader.of(tables, seed=3)
        self._lineage, self._as_int8 = lineage, as_int8
        self._chains: Chains = {}

    def publish(
        self, rows: Mapping[Key, float], removed: Iterable[Key] = (), *, is_base: bool = False, cut_at: float = 1.5
    ) -> Publication:
        """Publish a version: ids that lose their rows, and rows whose numbers are a value and those after it."""
        self.version += 1
        steps = np.arange(self._header.embedding_dim, dtype=np.float32)
        changed = {key: np.float32(value) + steps for key, value in rows.items()}
        removed = list(removed)
        for key in removed:
            del self.rows[key]
        self.rows |= changed
        is_base = is_base or not self._chains
        columns = _columns(list(self.rows if is_base else changed))
        order = zip(columns["tables"].tolist(), columns["ids"].tolist(), strict=True)
        weights = np.array([self.rows[key] for key in order], dtype=np.float32).reshape(-1, len(steps))
        gone = _columns([] if is_base else removed)
        names = []
        for group, sign in GROUPS.items():
            rows_of_group = columns | {"weights": np.float32(sign) * weights}
            delta = Delta(0 if is_base else 1, 2, gone, rows_of_group, _columns([]), {})
            names.append(self.folder.segments.new_name(self.version, self.version))
            place = self.folder.segments.place(group)
            entry = write_delta(place / names[-1], delta, first=self.version, as_int8=self._as_int8)
            before: Chain = () if entry.is_base else self._chains[group][0]
            self._chains[group] = ((*before, entry),)

        def write(place: Path) -> Publication:
            save_file({"bias": np.full(1, self.version, dtype=np.float32)}, place / DENSE)
            (place / JOB).write_text("run: run\n")
            headers: dict[str, tuple[TableGroupHeader, ...]] = dict.fromkeys(GROUPS, (self._header,))
            return Publication(
                self.version, self._lineage, 10 * self.version, cut_at, len(changed), headers, dict(self._chains)
            )

        publication = self.folder.add(self.version, write)
        for name in names:
            self.folder.segments.forget_name(name)
        return publication


def _columns(keys: list[Key]) -> Columns:
    keys = sorted(keys)
    return {
        "tables": np.array([table for table, _ in keys], dtype=np.int32),
        "ids": np.array([each for _, each in keys], dtype=np.int64),
    }
