"""`ParquetSink`: a folder per version with what changed, as Parquet; see `docs/publishing.md` for the layout."""

from __future__ import annotations

import re
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.embeddings.changes.delta import Columns
from headrace.errors import CheckpointError, ConfigError, StorageError, VersionMismatch
from headrace.files import new_folder
from headrace.manifest import Manifest
from headrace.publishing.publications import DENSE, JOB, Publication, PublicationFolder
from headrace.publishing.sinks.sink import Cursor, rows_by_table

__all__ = ["ParquetSink"]

FORMAT = "headrace-parquet"
VERSION = 1

_NAME = re.compile(r"[0-9]{8,}")


class ParquetSink:
    """Adds a folder per version to a folder. Versions that are published while one is written are in the next one.

    Args:
        path: The folder; it is created with the first version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)
        for leftover in path.glob(".*.partial"):  # of killed writers
            shutil.rmtree(leftover, ignore_errors=True)

    def cursor(self) -> Cursor | None:
        """See `Sink`."""
        try:
            names = sorted(each.name for each in self.path.iterdir() if _NAME.fullmatch(each.name))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be read: {error.strerror}") from error
        if not names:
            return None
        try:
            content = Manifest.read(self.path / names[-1], FORMAT, VERSION).content
        except VersionMismatch as error:
            raise ConfigError(str(error)) from error
        except CheckpointError as error:
            raise ConfigError(f"{error}; delete the folder {names[-1]} to write it again") from error
        return Cursor(content["lineage"], content["number"])

    def write(self, folder: PublicationFolder, publication: Publication, after: Cursor | None) -> None:
        """See `Sink`."""
        since = 0 if after is None else after.version
        source, target = folder.place(publication.version), self.path / f"{publication.version:08d}"
        with new_folder(target) as partial:
            changes = folder.changes(publication, since)
            for name in (DENSE, JOB):
                if name in publication.files:
                    shutil.copyfile(source / name, partial / name)
            with ExitStack() as stack:
                files = _Files(partial, publication, stack)
                for name, section, columns in changes.blocks:
                    files.write(name, section, columns)
            content = {
                "number": publication.version,
                "since": 0 if changes.is_everything else since,
                "is_everything": changes.is_everything,
                "lineage": publication.lineage,
                "step": publication.step,
                "cut_at": publication.cut_at,
            }
            Manifest.write(partial, FORMAT, VERSION, content)

    def close(self) -> None:
        """See `Sink`."""


class _Files:
    """The Parquet files of a version: `rows.GROUP.parquet` and `removed.GROUP.parquet` of each table group."""

    def __init__(self, place: Path, publication: Publication, stack: ExitStack) -> None:
        self._publication = publication
        self._schemas: dict[tuple[str, str], pa.Schema] = {}
        self._writers: dict[tuple[str, str], Any] = {}
        for name, parts in publication.tables.items():
            keys = [("table", pa.dictionary(pa.int32(), pa.string())), ("id", pa.int64()), ("version", pa.int64())]
            weights = ("weights", pa.list_(pa.float32(), parts[0].embedding_dim))
            for section, fields in (("removed", keys), ("rows", [*keys, weights])):
                self._schemas[name, section] = schema = pa.schema([pa.field(*each, nullable=False) for each in fields])
                writer = pq.ParquetWriter(place / f"{section}.{name}.parquet", schema, compression="zstd")
                self._writers[name, section] = stack.enter_context(writer)

    def write(self, table_group: str, section: str, columns: Columns) -> None:
        names = pa.array([table["name"] for table in self._publication.tables[table_group][0].tables], pa.string())
        tables = pa.DictionaryArray.from_arrays(pa.array(columns["tables"], pa.int32()), names)
        versions = np.full(len(tables), self._publication.version, dtype=np.int64)
        arrays = [tables, pa.array(columns["ids"], pa.int64()), pa.array(versions)]
        schema = self._schemas[table_group, section]
        if section == "rows":
            split = [weights for *_, weights in rows_by_table(self._publication, table_group, columns)]
            dim = self._publication.tables[table_group][0].embedding_dim
            flat = np.concatenate([np.empty(0, np.float32), *(each.ravel() for each in split if each is not None)])
            arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(flat), dim))
        self._writers[table_group, section].write_table(pa.Table.from_arrays(arrays, schema=schema))
