"""`import_text` converts CSV and JSON lines to Parquet. DuckDB reads them, types are guessed, and lists are split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import ConfigError, DataError
from headrace.files import new_folder
from headrace.logs.files import LogFile, list_log
from headrace.logs.folders import SUFFIXES as PARQUET
from headrace.logs.importers.text_columns import TextColumn
from headrace.logs.importers.text_files import (
    STOP,
    SUFFIXES,
    Kind,
    Reject,
    TextReader,
)
from headrace.logs.importers.text_plan import TextConfig, TextPlan, plan_import
from headrace.logs.outputs import check_output
from headrace.logs.source import REJECT_SCHEMA
from headrace.logs.writer import ParquetLogWriter
from headrace.messages import shorten
from headrace.paths import local_path

__all__ = ["TextImport", "import_text", "text_kind"]


@dataclass
class TextImport:
    """The result of `import_text`.

    Attributes:
        columns: The columns and their types.
        rows: Number of rows written.
        num_bad: Number of bad lines, dropped or quarantined.
        files: The Parquet files written.
        quarantine: Folder of the bad lines; None if there are none.
        notes: Lines for the user on guesses and omitted columns.
    """

    columns: tuple[TextColumn, ...] = ()
    rows: int = 0
    num_bad: int = 0
    files: list[Path] = field(default_factory=list)
    quarantine: Path | None = None
    notes: list[str] = field(default_factory=list)


def text_kind(location: str | Path) -> Kind | None:
    """The kind of text logs at a path, by file extensions.

    None if there are Parquet files (text files next to them may be documentation), no files, or if it is a URL.
    """
    for suffixes, kind in ((PARQUET, None), *((names, kind) for kind, names in SUFFIXES.items())):
        try:
            files = list_log(local_path(location, where="LOGS"), suffixes=suffixes).files
        except (ConfigError, DataError):
            continue
        if any(file.path.lower().endswith(suffixes) for file in files):
            return kind
    return None


def import_text(
    kind: Kind,
    path: str | Path,
    out: str | Path,
    config: TextConfig | None = None,
    *,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> TextImport:
    """Convert CSV files or JSON lines to a Parquet folder, which appears only when all lines have been converted.

    Each file becomes a Parquet file at the same path below `out`, in natural order of names.

    Args:
        kind: "csv" (also with tabs or semicolons), or "jsonl": one JSON object per line.
        path: A file, folder or glob; files may be compressed with gzip or zstd.
        out: Folder for the Parquet files; must not exist. Quarantined bad lines go to a folder next to it,
            `NAME-quarantine`.
        config: Options; None for the defaults.
        on_rows: Called with the number of rows of each batch.

    Raises:
        ConfigError: There are no such files, the folder already exists, or an option does not match the columns.
        DataError: A line is bad and the policy is "fail"; the text names file, row, column, the given and the expected
            value.
        MissingExtra: DuckDB is not installed.
    """
    config = config or TextConfig()
    path, out = local_path(path, where="PATH"), local_path(out, where="OUT")
    listing = list_log(path, suffixes=SUFFIXES[kind])
    check_output(out, path, what="OUT")
    quarantine = out.parent / f"{out.resolve().name}-quarantine"
    for folder in (out, quarantine) if config.bad_lines == "quarantine" else (out,):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder}: is not empty; choose a new or empty folder")
    done = TextImport(notes=list(listing.notes))
    with TextReader() as reader, ExitStack() as stack:
        plan = plan_import(kind, reader, listing.files, config)
        done.columns = plan.columns
        done.notes += plan.notes
        rejects = None
        if config.bad_lines == "quarantine":
            rejects = _Quarantine(quarantine, stack)
        if out.is_dir():
            out.rmdir()
        with new_folder(out) as partial:
            for folder, files in groupby(listing.files, key=lambda file: file.folder):
                place = partial / folder if folder else partial
                with ParquetLogWriter(place, schema=plan.schema, rows_per_file=config.rows_per_file) as writer:
                    for file in files:
                        for batch, bad in _rows(reader, plan, file, is_strict=config.bad_lines == "fail"):
                            done.num_bad += len(bad)
                            if bad and config.bad_lines == "fail":
                                raise _error(file, bad[0])
                            if bad and rejects is not None:
                                rejects.add(file, bad)
                            writer.write(batch)
                            on_rows(batch.num_rows)
                        writer.start_file()
                    done.rows += writer.num_rows
                    done.files += [out / folder / name.name for name in writer.files]
            if not done.rows:
                raise DataError(f"{path}: no rows" + (f", {done.num_bad:,} bad lines" if done.num_bad else ""))
        done.quarantine = quarantine if rejects is not None and done.num_bad else None
    return done


class _Quarantine:
    """Writes bad rows to a folder, which is created only if there are any."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._writer: ParquetLogWriter | None = None

    def add(self, file: LogFile, bad: Sequence[Reject]) -> None:
        if self._writer is None:
            self._writer = self._stack.enter_context(ParquetLogWriter(self._folder, schema=REJECT_SCHEMA))
        rows = [{"file": file.path, "row_group": None, **vars(reject)} for reject in bad]
        self._writer.write(pa.Table.from_pylist(rows, schema=REJECT_SCHEMA))


def _rows(
    reader: TextReader, plan: TextPlan, file: LogFile, *, is_strict: bool
) -> Iterator[tuple[pa.Table, list[Reject]]]:
    """Read the valid rows of a file in order, batch by batch, with the bad rows between them."""
    path, columns, layout = Path(file.path), plan.columns, plan.layouts[file.path]
    # Internal names start with two underscores, so that a condition can use the names of columns.
    texts = [f"NULLIF({layout.texts(column.name)}, '') AS __t{n}" for n, column in enumerate(columns)]
    values = [f"{column.value(f'__t{n}')} AS __v{n}" for n, column in enumerate(columns)]
    wrong = " ".join(
        f"WHEN __t{n} IS NOT NULL AND NOT coalesce({column.fits(f'__t{n}')}, false) THEN {n}"
        for n, column in enumerate(columns)
    )
    out = [n for n, column in enumerate(columns) if column.name not in plan.in_label]
    values += [f'{column.value(f"__t{n}")} AS "{column.name}"' for n, column in enumerate(columns) if n not in out]
    label = "" if plan.label is None else f", ({plan.label})::BOOLEAN::TINYINT AS __label"
    stored = STOP if is_strict else "rejected"
    given = f"[{', '.join(f'__t{n}' for n in range(len(columns)))}]"
    query = (
        f"SELECT {', '.join(f'__v{n}' for n in out)}{label}, __mistake, __wrong, "
        f"CASE WHEN __wrong >= 0 THEN {given}[__wrong + 1] END AS __given, "
        f"CASE WHEN __mistake IS NOT NULL OR __wrong >= 0 THEN __raw END AS __raw FROM ("
        f"SELECT *, {', '.join(values)}, CASE {wrong} ELSE -1 END AS __wrong FROM ("
        f"SELECT {', '.join(texts)}, {layout.mistake()} AS __mistake, {layout.raw()} AS __raw "
        f"FROM {layout.scan(path, stored)}))"
    )
    schema = plan.schema
    start = 0
    for batch in reader.batches(query, path):
        checks = batch.select(["__mistake", "__wrong", "__given", "__raw"])
        is_bad = pc.or_(checks["__mistake"].is_valid(), pc.greater_equal(checks["__wrong"], 0))
        bad = []
        if pc.any(is_bad).as_py():
            places = pc.indices_nonzero(is_bad).to_pylist()
            bad = [_reject(start + row, columns, checks.slice(row, 1).to_pylist()[0]) for row in places]
            batch = batch.filter(pc.invert(is_bad))
        start += checks.num_rows
        table = pa.Table.from_batches([batch]).select(list(range(len(schema)))).rename_columns(schema.names)
        yield table.cast(schema), bad
    if stored != STOP:
        yield schema.empty_table(), reader.rejects(stored, path, has_header=getattr(layout, "has_header", False))


def _reject(row: int, columns: Sequence[TextColumn], found: dict[str, Any]) -> Reject:
    if found["__mistake"] is not None:
        return Reject(row, None, f"given {shorten(repr(found['__raw']), 60)}, {found['__mistake']}", found["__raw"])
    column = columns[found["__wrong"]]
    given = shorten(repr(found["__given"]), 60)
    return Reject(row, column.name, f"given {given}, expected {column.expected}", found["__raw"])


def _error(file: LogFile, bad: Reject) -> DataError:
    column = "" if bad.column is None else f", column {bad.column}"
    return DataError(
        f"{file.path}: row {bad.row + 1}{column}: {bad.reason}; drop or quarantine bad lines with --bad-lines, or give "
        "the type of the column with --type"
    )
