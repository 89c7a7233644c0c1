"""`import_clicks`: converts clicks in hourly files to impressions with sampled negatives, one Parquet folder per
hour."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, model_validator

from headrace.config import Config
from headrace.errors import ConfigError, DataError
from headrace.files import write_text, writing
from headrace.logs.importers.click_files import ClickFile, iterate_click_files, read_clicks
from headrace.logs.importers.click_state import LATE_HOURS, Candidates, ClickState, JaggedIds
from headrace.logs.keyed_random import derive
from headrace.logs.outputs import check_output
from headrace.logs.schema import DenseColumn, IdColumn, IdListColumn, LabelColumn, Schema, TimestampColumn
from headrace.logs.writer import ParquetLogWriter, partition_folder, read_marker
from headrace.messages import shorten_list
from headrace.paths import local_path

__all__ = ["ClicksConfig", "ClicksImport", "import_clicks"]

TICKS_PER_HOUR = {"s": 3600, "ms": 3_600_000, "us": 3_600_000_000, "ns": 3_600_000_000_000}
OWN_COLUMNS = ("row", "timestamp", "user", "session", "click", "item", "item_clicks_last_hour", "hour_of_day")
LIST_COLUMNS = ("history", "session_items")
MARKER_KIND = "clicks import"


class ClicksConfig(Config):
    """How to read and convert a click log. All columns read must contain integers.

    Attributes:
        user, session, item: Names of the id columns in the CSV files.
        timestamp: Name of the click time column.
        unit: Unit of the timestamps, counted from 1970-01-01 UTC.
        context: Context columns: name in the impressions -> name in the CSV files.
        negatives: Negatives (items not clicked) per click.
        negatives_by: "popularity": drawn from the clicks of the previous hour; "uniform": from the items of the
            previous day.
        history_length: Maximum items in a user's history.
        seed: Seed for drawing negatives.
    """

    user: str = "user_id"
    session: str = "session_id"
    item: str = "click_article_id"
    timestamp: str = "click_timestamp"
    unit: Literal["s", "ms", "us", "ns"] = "ms"
    context: dict[str, str] = Field(
        default={
            "environment": "click_environment",
            "device": "click_deviceGroup",
            "os": "click_os",
            "country": "click_country",
            "region": "click_region",
            "referrer": "click_referrer_type",
        }
    )
    negatives: int = Field(default=4, ge=0, le=1000)
    negatives_by: Literal["popularity", "uniform"] = "popularity"
    history_length: int = Field(default=50, ge=1, le=10_000)
    seed: int = Field(default=7, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _context_has_its_own_names(self) -> ClicksConfig:
        taken = sorted(set(self.context) & {*OWN_COLUMNS, *LIST_COLUMNS})
        if taken:
            raise ValueError(f"different names for context columns, these are reserved: {shorten_list(taken)}")
        return self

    def log_schema(self) -> Schema:
        """The schema of the impressions."""
        return Schema(
            labels=(LabelColumn(name="click"),),
            dense=(DenseColumn(name="item_clicks_last_hour"),),
            ids=tuple(IdColumn(name=name) for name in ("user", "item", *self.context, "hour_of_day")),
            id_lists=(
                IdListColumn(name="history", max_length=self.history_length),
                IdListColumn(name="session_items"),
            ),
            timestamp=TimestampColumn(name="timestamp", unit=self.unit),
            session_id="session",
            row_id="row",
        )


@dataclass(frozen=True)
class ClicksImport:
    """The result of `import_clicks`.

    Attributes:
        hours: Hourly files converted to a folder, now or earlier.
        hours_kept: Hours that an earlier call had finished.
        hours_skipped: Files without rows, because they have no clicks or no earlier clicks to draw negatives from.
        clicks: Clicks read.
        rows: Impressions in the output folder.
    """

    hours: int
    hours_kept: int
    hours_skipped: int
    clicks: int
    rows: int


def import_clicks(
    path: str | Path,
    out: str | Path,
    config: ClicksConfig | None = None,
    *,
    on_hour: Callable[[int, ClicksImport], None] | None = None,
) -> ClicksImport:
    """Convert a click log to impressions; see `docs/importing.md` for the columns.

    It may be killed at any time and called again: finished hours are kept, and the result is the same. The state from
    earlier clicks is rebuilt by reading their files again.

    Args:
        path: A folder of hourly CSV files, or a tar archive of them (gzip, bzip2 or xz, read as a stream).
        out: Output folder for `hour=000/`, `hour=001/`, ... and `schema.yaml`.
        config: Column names and options; the defaults fit the hourly news log of Globo.com.
        on_hour: Called after each file with the bytes of input read and the result so far.

    Raises:
        ConfigError: The input does not exist, or `out` contains other files or was started with different options.
        DataError: A file is invalid; the message names it, and the row and column if known.
    """
    config = config or ClicksConfig()
    path, out = local_path(path, where="PATH"), local_path(out, where="OUT")
    check_output(out, path, what="folder to write")
    importer = _Importer(config, path, out)
    for file in iterate_click_files(path):
        importer.take(file)
        if on_hour is not None:
            on_hour(file.bytes_read, importer.done)
    return importer.done


class _Importer:
    """Imports hourly files in order, skipping finished ones."""

    def __init__(self, config: ClicksConfig, path: Path, out: Path) -> None:
        self._config, self._path, self._out = config, path, out
        hour = TICKS_PER_HOUR[config.unit]
        self._state = ClickState(history_length=config.history_length, ticks_per_hour=hour)
        self._schema = _arrow_schema(config)
        self._key = derive(np.uint64(config.seed), 0)
        self._latest_start = -(2**62)
        self._latest_name = ""
        self.done = ClicksImport(0, 0, 0, 0, 0)
        self._prepare_folder()

    def take(self, file: ClickFile) -> None:
        """Write one hour, unless it is finished, and add its clicks to the state."""
        config, done = self._config, self.done
        wanted = (config.timestamp, config.user, config.session, config.item, *config.context.values())
        columns = read_clicks(file, tuple(dict.fromkeys(wanted)), self._path)
        order = np.argsort(columns[config.timestamp], kind="stable")
        columns = {name: values[order] for name, values in columns.items()}
        times = columns[config.timestamp]
        self._check_order(file, times)
        history = self._state.start_hour(times, columns[config.user], columns[config.item])
        skipped = len(times) == 0 or not self._state.has_pool
        rows = 0
        kept = False
        if not skipped:
            folder = partition_folder(self._out, [("hour", f"{file.number:03d}")])
            marker = {
                "kind": MARKER_KIND,
                "version": 2,
                "config": config.model_dump(mode="json"),
                "file": file.name,
                "clicks": len(times),
            }
            rows_there = _finished_rows(folder, marker)
            kept = rows_there is not None
            rows = rows_there if rows_there is not None else self._write(file, columns, history, done.clicks, marker)
        self.done = ClicksImport(
            hours=done.hours + (not skipped),
            hours_kept=done.hours_kept + kept,
            hours_skipped=done.hours_skipped + skipped,
            clicks=done.clicks + len(times),
            rows=done.rows + rows,
        )

    def _write(
        self,
        file: ClickFile,
        columns: dict[str, npt.NDArray[np.int64]],
        history: JaggedIds,
        first_click: int,
        marker: dict[str, Any],
    ) -> int:
        config = self._config
        key, uniform = np.uint64(derive(np.uint64(self._key), file.number)), config.negatives_by == "uniform"
        candidates = self._state.candidates(config.negatives, key, uniform=uniform)
        session_items = self._state.session_items(columns[config.session])
        batch = self._impressions(columns, history, session_items, candidates, first_click)
        with ParquetLogWriter(
            self._out,
            schema=self._schema,
            partition=[("hour", f"{file.number:03d}")],
            marker={**marker, "rows": batch.num_rows},
        ) as writer:
            writer.write(batch)
        return int(batch.num_rows)

    def _impressions(
        self,
        columns: dict[str, npt.NDArray[np.int64]],
        history: JaggedIds,
        session_items: JaggedIds,
        candidates: Candidates,
        first_click: int,
    ) -> pa.RecordBatch:
        config = self._config
        times = columns[config.timestamp]
        hour_of_day = times // TICKS_PER_HOUR[config.unit] % 24
        per_click = {
            "timestamp": times,
            "user": columns[config.user],
            "session": columns[config.session],
            **{name: columns[source] for name, source in config.context.items()},
            "hour_of_day": hour_of_day,
            "history": pa.ListArray.from_arrays(history.offsets, history.values),
            "session_items": pa.ListArray.from_arrays(session_items.offsets, session_items.values),
        }
        rows = pa.RecordBatch.from_pydict(per_click).take(pa.array(candidates.click))
        per_row = {
            "row": (first_click + candidates.click) * (config.negatives + 1) + candidates.slot,
            "click": candidates.label,
            "item": candidates.item,
            "item_clicks_last_hour": candidates.last_hour,
        }
        arrays = {**dict(zip(rows.schema.names, rows.columns, strict=True)), **per_row}
        return pa.RecordBatch.from_arrays([pa.array(arrays[name]) for name in self._schema.names], schema=self._schema)

    def _check_order(self, file: ClickFile, times: npt.NDArray[np.int64]) -> None:
        """Check that files are in time order by their first clicks, because counts of the last hour depend on it."""
        if len(times) == 0:
            return
        if times[0] < self._latest_start - LATE_HOURS * TICKS_PER_HOUR[self._config.unit]:
            raise DataError(
                f"{self._path}: {file.name} starts at {times[0]}, more than {LATE_HOURS} hours before "
                f"{self._latest_name} at {self._latest_start}; files must be named in order of time"
            )
        if times[0] > self._latest_start:
            self._latest_start, self._latest_name = int(times[0]), file.name

    def _prepare_folder(self) -> None:
        """Write the schema to the folder; refuses a folder of other origin."""
        schema_path = self._out / "schema.yaml"
        text = self._config.log_schema().to_yaml()
        if self._out.exists() and (not self._out.is_dir() or (any(self._out.iterdir()) and not schema_path.is_file())):
            raise ConfigError(f"{self._out}: was not written by this import; choose a new folder")
        with writing(self._out):
            self._out.mkdir(parents=True, exist_ok=True)
        if schema_path.is_file() and schema_path.read_text(encoding="utf-8") == text:
            return
        write_text(schema_path, text)


def _finished_rows(folder: Path, marker: dict[str, Any]) -> int | None:
    """Number of rows of a finished hour, or None.

    Raises:
        ConfigError: The folder was made from another file or with different options.
    """
    if not folder.exists():
        return None
    there = read_marker(folder) or {}
    for key in ("kind", "version", "file", "clicks", "config"):
        if there.get(key) != marker[key]:
            was, now = _first_difference(there.get(key), marker[key])
            raise ConfigError(f"{folder}: made with {key} {was}, given {now}; import into another folder")
    return int(there["rows"])


def _first_difference(was: Any, now: Any) -> tuple[Any, Any]:
    """The first key that differs between two configs."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in now:
            if was.get(key) != now[key]:
                return f"{key} = {was.get(key)}", f"{key} = {now[key]}"
    return was, now


def _arrow_schema(config: ClicksConfig) -> pa.Schema:
    fields = [("row", pa.int64()), ("timestamp", pa.int64()), ("session", pa.int64()), ("click", pa.int8())]
    fields += [("user", pa.int64()), ("item", pa.int64()), ("item_clicks_last_hour", pa.int64())]
    fields += [(name, pa.int64()) for name in (*config.context, "hour_of_day")]
    fields += [(name, pa.list_(pa.int64())) for name in LIST_COLUMNS]
    return pa.schema(fields)
