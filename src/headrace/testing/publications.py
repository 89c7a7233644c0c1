"""`RowPublisher`: publishes rows of a dictionary, without a model or a trainer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from headrace.embeddings import TableConfig
from headrace.embeddings.changes.chains import Chain, Chains
from headrace.embeddings.changes.delta import Columns, Delta
from headrace.embeddings.changes.quantization import quantized
from headrace.embeddings.changes.segments import write_delta
from headrace.embeddings.storage.row_formats import RowFormat
from headrace.embeddings.tables.state import TableGroupHeader
from headrace.publishing.publications import DENSE, JOB, Publication, PublicationFolder

__all__ = ["RowPublisher"]

Key = tuple[int, int]
"""Number of the table, and id."""


class RowPublisher:
    """Publishes versions of two tables, `items` and `users`, of one table group.

    Args:
        path: Folder of the publications.
        embedding_dim: Dimension of rows.
        lineage: Lineage of its versions.
        as_int8: Whether to publish rows as int8.

    Attributes:
        folder: The publications.
        rows: Rows of the newest version, float32 [D].
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
        self._chain: Chain = ()

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
        is_base = is_base or not self._chain
        columns = _columns(list(self.rows if is_base else changed))
        order = zip(columns["tables"].tolist(), columns["ids"].tolist(), strict=True)
        weights = [self.rows[key] for key in order]
        columns["weights"] = np.array(weights, dtype=np.float32).reshape(-1, len(steps))
        delta = Delta(
            since=0 if is_base else 1,
            version=2,
            removed=_columns([] if is_base else removed),
            rows=quantized(columns) if self._as_int8 else columns,
            waiting=_columns([]),
            whole={},
        )
        name = self.folder.segments.new_name(self.version, self.version)
        entry = write_delta(self.folder.segments.place("embeddings") / name, delta, first=self.version)
        self._chain = (entry,) if entry.is_base else (*self._chain, entry)
        chains: Chains = {"embeddings": (self._chain,)}

        def write(place: Path) -> Publication:
            save_file({"bias": np.full(1, self.version, dtype=np.float32)}, place / DENSE)
            (place / JOB).write_text("run: run\n")
            headers: dict[str, tuple[TableGroupHeader, ...]] = {"embeddings": (self._header,)}
            return Publication(self.version, self._lineage, 10 * self.version, cut_at, len(changed), headers, chains)

        publication = self.folder.add(self.version, write)
        self.folder.segments.forget_name(name)
        return publication


def _columns(keys: list[Key]) -> Columns:
    keys = sorted(keys)
    return {
        "tables": np.array([table for table, _ in keys], dtype=np.int32),
        "ids": np.array([each for _, each in keys], dtype=np.int64),
    }
