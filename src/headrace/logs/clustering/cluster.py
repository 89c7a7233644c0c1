"""`cluster_log`: writes a copy of a log clustered by session, with repeated values stored once."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from headrace.errors import ConfigError, DataError, expect
from headrace.files import write_text, writing
from headrace.logs.clustering.arrange import Arranger
from headrace.logs.clustering.checksum import RowSums
from headrace.logs.clustering.config import ClusterConfig
from headrace.logs.clustering.keys import RowOrder, read_keys
from headrace.logs.clustering.output import ClusteredFile, SessionRows
from headrace.logs.clustering.payload import LogColumns, PayloadReader
from headrace.logs.clustering.plan import plan_columns
from headrace.logs.clustering.units import Unit, find_done, plan_units
from headrace.logs.files import list_log
from headrace.logs.footers import Footer
from headrace.logs.identity import note_names
from headrace.logs.nested.layout import Layout
from headrace.logs.outputs import check_output
from headrace.logs.schema import Schema
from headrace.logs.time_units import check_log_unit
from headrace.paths import local_path

__all__ = ["ClusteredLog", "ClusteredWindow", "cluster_log"]

SCHEMA_NAME = "schema.yaml"


@dataclass(frozen=True)
class ClusteredWindow:
    """A clustered file that was written.

    Attributes:
        name: Name of the window.
        path: Path of the file.
        num_rows_read: Rows of the window in the log, before sampling.
        num_sessions: Sessions written.
        bytes_read: Size of the window's files.
        bytes_written: Size of the file.
        before: Sums of the (sampled) rows as read from the log.
        after: Sums of the rows as read back from the file.
    """

    name: str
    path: Path
    num_rows_read: int
    num_sessions: int
    bytes_read: int
    bytes_written: int
    before: RowSums
    after: RowSums


@dataclass(frozen=True)
class ClusteredLog:
    """The result of `cluster_log`.

    Attributes:
        folder: Folder of the clustered log, with its `schema.yaml`.
        windows: Files written by this call.
        num_kept: Files of the log that an earlier run had clustered.
        layout: Layout of the clustered log; None if it has no rows.
    """

    folder: Path
    windows: tuple[ClusteredWindow, ...]
    num_kept: int
    layout: Layout | None


def cluster_log(
    location: str | Path,
    folder: str | Path,
    schema: Schema,
    config: ClusterConfig | None = None,
    *,
    on_rows: Callable[[int], None] | None = None,
    on_message: Callable[[str], None] | None = None,
) -> ClusteredLog:
    """Write a session-clustered copy of a log, or add new data to an existing one.

    Each window becomes one file, which is published atomically after verification: it is read back, and checksums over
    all columns are compared. Rows keep their ids: those of the schema's row id column, or else the ids derived from the
    log's own files, in a new column `original_row`.

    Args:
        location: The log.
        folder: Local output folder; new, empty, or from an earlier run with the same settings.
        schema: Schema of the log.
        config: Settings.
        on_rows: Called with the number of rows just clustered, and again with those just verified.
        on_message: Called at the start with lines about duplicate files and columns that cannot be copied.

    Raises:
        ConfigError: Session, window or folder do not fit the log, the folder is inside the log or contains other files,
            or an earlier run had different settings.
        DataError: A file is damaged or changed, or verification failed.
        MissingExtra: DuckDB is not installed.
    """
    expect(schema, Schema, where="cluster_log: schema", expected="a Schema")
    expect(config, (ClusterConfig, type(None)), where="cluster_log: config", expected="a ClusterConfig")
    config = ClusterConfig() if config is None else config
    folder = local_path(folder, where="OUT")
    columns = LogColumns.of(schema, config)
    files = list_log(location).files
    check_output(folder, location, what="folder of the copy")
    done = find_done(folder)
    settings = config.model_dump(mode="json", exclude={"memory_bytes"})
    if done.settings and done.settings != settings:
        pairs = [(key, done.settings.get(key), value) for key, value in settings.items()]
        changed = [f"{key}: {then} then, {now} now" for key, then, now in pairs if then != now]
        raise ConfigError(
            f"{folder}: was clustered with different settings ({'; '.join(changed)}); choose a new folder"
        )
    units, copies = plan_units(files, done, folder, by_file=config.window == "file")
    if done.layout is not None:
        columns = replace(columns, session=done.layout.session)
    messages = note_names("duplicates of other files, not clustered again", copies, "as")
    stored = pa.schema([])
    if units:
        footers = [footer for unit in units for _, footer in unit.footers]
        if schema.timestamp is not None:
            check_log_unit(footers, schema.timestamp)
        columns, stored, notes = plan_columns(footers, columns, done=done.columns, layout=done.layout)
        messages += notes
    if on_message is not None:
        for message in messages:
            on_message(message)
    is_new = not folder.exists()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".clustering-*"):  # from a killed run
        shutil.rmtree(left, ignore_errors=True)
    layout = done.layout
    windows = []
    for unit in units:
        with writing(folder):
            scratch = Path(tempfile.mkdtemp(prefix=".clustering-", dir=folder))
        try:
            window, layout = _cluster_unit(unit, columns, stored, config, settings, layout, scratch, on_rows)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            _remove_empty(unit.path.parent, folder.parent if is_new else folder)
        if window is not None:
            windows.append(window)
    if layout is not None:
        _write_schema(folder / SCHEMA_NAME, columns.output_schema_of(schema), layout)
    num_kept = len(files) - len(copies) - sum(len(unit.footers) for unit in units)
    return ClusteredLog(folder, tuple(windows), num_kept, layout)


def _cluster_unit(
    unit: Unit,
    columns: LogColumns,
    stored: pa.Schema,
    config: ClusterConfig,
    settings: dict[str, Any],
    layout: Layout | None,
    scratch: Path,
    on_rows: Callable[[int], None] | None,
) -> tuple[ClusteredWindow | None, Layout | None]:
    """Cluster one window; returns None if the sample has none of its sessions."""
    gap_us = None if config.user is None else int(config.gap_s * 1_000_000)
    payload = PayloadReader(unit.footers, columns, stored, max_bytes=config.memory_bytes // 16)
    before = RowSums(columns.labels)
    keys = read_keys(unit.footers, columns.schema, stored.field(columns.key), config)
    with RowOrder(keys, gap_us=gap_us, memory_bytes=max(config.memory_bytes // 4, 48 << 20), folder=scratch) as order:
        if order.num_rows == 0:
            return None, layout
        arranger = Arranger(
            payload.schema,
            num_rows=order.num_rows,
            row_bytes=payload.row_bytes,
            memory_bytes=config.memory_bytes // 2,
            folder=scratch,
        )
        with arranger:
            for rows, destinations in payload.read(order.destinations()):
                before.add(rows.select(list(range(rows.num_columns - 1))))
                arranger.add(rows, destinations)
                if on_rows is not None:
                    on_rows(rows.num_rows)
            order.close()
            if config.sample == 1.0 and before.num_rows != unit.num_rows:
                raise DataError(f"{unit.name}: read {before.num_rows:,} rows, but its files have {unit.num_rows:,}")
            with ClusteredFile(unit.path, config, columns, layout) as file:
                # Row groups small enough that a few of them fit into memory while being built and written.
                limit = max(1, int(config.memory_bytes / 8 / payload.row_bytes))
                for sessions in SessionRows(min(config.rows_per_group, limit)).cut(arranger.arranged()):
                    file.write(sessions)
                file.finish(
                    {
                        "files": unit.origins(),
                        "settings": settings,
                        "checksum": f"{before.checksum:016x}",
                        "row_bytes_on_disk": _row_bytes_on_disk([footer for _, footer in unit.footers]),
                    }
                )
                after = _read_back(file, columns, on_rows)
                if (after.num_rows, after.checksum) != (before.num_rows, before.checksum):
                    raise DataError(
                        f"{unit.path}: verification failed: read {before.describe()}; "
                        f"written {after.describe()}; the file was discarded"
                    )
                file.publish()
    window = ClusteredWindow(
        unit.name,
        unit.path,
        unit.num_rows,
        order.num_sessions,
        sum(footer.file.size_bytes for _, footer in unit.footers),
        unit.path.stat().st_size,
        before,
        after,
    )
    return window, file.layout


def _remove_empty(folder: Path, stop: Path) -> None:
    """Remove empty folders, up to but excluding `stop`."""
    while folder != stop and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def _row_bytes_on_disk(footers: Sequence[Footer]) -> dict[str, float]:
    """Compressed bytes per row of each column in the original files, the cost of reading them without clustering."""
    num_rows = max(1, sum(footer.num_rows for footer in footers))
    sizes: dict[str, int] = {}
    for footer in footers:
        for row_group in range(footer.metadata.num_row_groups):
            for name, num_bytes in footer.compressed_bytes([row_group]).items():
                sizes[name] = sizes.get(name, 0) + num_bytes
    return {name: round(num_bytes / num_rows, 4) for name, num_bytes in sizes.items()}


def _read_back(file: ClusteredFile, columns: LogColumns, on_rows: Callable[[int], None] | None) -> RowSums:
    sums = RowSums(columns.labels)
    for rows in file.read_back():
        sums.add(rows)
        if on_rows is not None:
            on_rows(rows.num_rows)
    return sums


def _write_schema(path: Path, schema: Schema, layout: Layout) -> None:
    note = f"# Clustered by session ({layout.session}), layout {layout.kind}; rows keep their ids.\n"
    write_text(path, note + schema.to_yaml())
