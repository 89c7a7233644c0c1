"""`import_text`: CSV and JSON lines to Parquet; DuckDB reads them, types are guessed, lists in texts are split."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from headrace.config import Config
from headrace.errors import ConfigError, DataError
from headrace.files import new_folder
from headrace.logs.files import LogFile, list_log
from headrace.logs.folders import SUFFIXES as PARQUET
from headrace.logs.importers.text_columns import JSON, TextColumn, guess_column
from headrace.logs.importers.text_columns import Kind as ColumnKind
from headrace.logs.importers.text_files import (
    SKIP,
    STOP,
    SUFFIXES,
    CSVLayout,
    JSONLayout,
    Kind,
    Reject,
    TextReader,
    csv_layout,
    json_layout,
    lines_query,
)
from headrace.logs.outputs import check_output
from headrace.logs.source import REJECT_SCHEMA
from headrace.logs.writer import ParquetLogWriter
from headrace.messages import shorten, shorten_list
from headrace.paths import local_path

__all__ = ["TextConfig", "TextImport", "import_text", "text_kind"]

SAMPLE_ROWS = 20_000
"""From the start of a file, to guess types from; types looked for take a second for 40 columns."""

SAMPLE_FILES = 5
"""Files that types are guessed from, spread over all of them."""

LIST_ROWS = 1_000
"""Rows that tell lists in texts."""

LABEL = "label"


class TextConfig(Config):
    """How to read CSV files or JSON lines."""

    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    """Separator of the columns of CSV; None for the most frequent one of comma, tab, semicolon and bar."""
    header: bool | None = None
    """Whether the first line of CSV holds the names; None to tell by what it holds."""
    types: dict[str, ColumnKind] = Field(default_factory=dict)
    """What some columns hold, instead of what is guessed."""
    lists: dict[str, str] = Field(default_factory=dict)
    """Separator of the elements in some columns of texts, instead of what is guessed; "" for no list."""
    label: str | None = None
    """SQL condition on the columns, such as "rating >= 4". It is written to the column `label` as 0 and 1, and the
    columns in it are left out, as they give the label away."""
    bad_lines: Literal["fail", "drop", "quarantine"] = "fail"
    """"fail" at the first bad line, "drop" bad lines, or "quarantine" them next to the output."""
    rows_per_file: int | None = Field(default=None, ge=1)
    """Maximum rows per file; None for a Parquet file per input file."""


@dataclass
class TextImport:
    """What `import_text` did.

    Attributes:
        columns: The columns, and what they hold.
        rows: Rows written.
        num_bad: Bad lines, dropped or quarantined.
        files: The Parquet files.
        quarantine: Folder of the bad lines; None if there are none.
        notes: Lines for the user: what was guessed, what was left out.
    """

    columns: tuple[TextColumn, ...] = ()
    rows: int = 0
    num_bad: int = 0
    files: list[Path] = field(default_factory=list)
    quarantine: Path | None = None
    notes: list[str] = field(default_factory=list)


def text_kind(location: str | Path) -> Kind | None:
    """What text logs there are at a path, by the endings of their names.

    None if there are Parquet files (texts beside them may say what they hold), no files, or it is a URL.
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
    """Turn CSV files or JSON lines into a Parquet folder, which appears whole when all lines are read.

    Each file becomes a Parquet file, in the same folder below `out`, in natural order of the names.

    Args:
        kind: "csv" (also with tabs or semicolons), or "jsonl": one JSON object per line.
        path: A file, folder or glob; files may be compressed with gzip or zstd.
        out: Folder for the Parquet files; must not exist. Bad lines, if they are quarantined, go to a folder beside
            it, `NAME-quarantine`.
        config: Options; the defaults when None.
        on_rows: Called with the number of rows of each batch.

    Raises:
        ConfigError: No such files, a folder that exists already, or an option that does not fit the columns.
        DataError: A bad line under "fail": file, row, column, given, expected.
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
        layouts, done.columns = _look(kind, reader, listing.files, config, done.notes)
        rejects = None
        if config.bad_lines == "quarantine":
            rejects = _Quarantine(quarantine, stack)
        if out.is_dir():
            out.rmdir()
        with new_folder(out) as partial:
            for folder, files in groupby(listing.files, key=lambda file: file.folder):
                place = partial / folder if folder else partial
                schema = _arrow_schema(done.columns, config)
                with ParquetLogWriter(place, schema=schema, rows_per_file=config.rows_per_file) as writer:
                    for file in files:
                        for batch, bad in _rows(reader, layouts[file.path], Path(file.path), done.columns, config):
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
    """Writes bad rows to a folder, which appears only if there are any."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._writer: ParquetLogWriter | None = None

    def add(self, file: LogFile, bad: Sequence[Reject]) -> None:
        if self._writer is None:
            self._writer = self._stack.enter_context(ParquetLogWriter(self._folder, schema=REJECT_SCHEMA))
        rows = [{"file": file.path, "row_group": None, **vars(reject)} for reject in bad]
        self._writer.write(pa.Table.from_pylist(rows, schema=REJECT_SCHEMA))


def _look(
    kind: Kind, reader: TextReader, files: Sequence[LogFile], config: TextConfig, notes: list[str]
) -> tuple[dict[str, CSVLayout | JSONLayout], tuple[TextColumn, ...]]:
    """The layout of each file, and the columns of all of them."""
    step = max(1, -(-len(files) // SAMPLE_FILES))
    sampled = [Path(file.path) for file in files[::step]]
    layouts: dict[str, CSVLayout | JSONLayout] = {}
    if kind == "csv":
        for file in files:
            path = Path(file.path)
            layouts[file.path] = csv_layout(path, delimiter=config.delimiter, has_header=config.header)
        first = layouts[files[0].path]
        assert isinstance(first, CSVLayout)
        names = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
        between = names.get(first.delimiter, repr(first.delimiter))
        header = (
            "names in the first line" if first.has_header else "no header: columns are called column1, column2, ..."
        )
        notes.append(f"columns separated by {between}, {header}")
    else:
        lines = [row["line"] for path in sampled for row in reader.rows(lines_query(path, SAMPLE_ROWS), path)]
        layout, left_out = json_layout(lines)
        if not layout.paths:
            raise DataError(f"{files[0].path}: no JSON objects with values in the first lines, expected one per line")
        layouts = dict.fromkeys([file.path for file in files], layout)
        notes += [f"left out {name}: {reason}" for name, reason in left_out.items()]
    wanted = list(dict.fromkeys(name for layout in layouts.values() for name in layout.names))
    for option, given in (("types", config.types), ("lists", config.lists)):
        unknown = [name for name in given if name not in wanted]
        if unknown:
            raise ConfigError(f"{option}: given {unknown[0]}, expected one of the columns: {shorten_list(wanted)}")
    guessed = {column.name: column for column in _guess(reader, sampled, layouts, wanted)}
    columns = tuple(_chosen(guessed[name], config) for name in wanted)
    for column in columns:
        if column.separator not in ("", JSON):
            kind_of_items = {"integers": "integers", "numbers": "numbers"}.get(column.kind, "texts")
            notes.append(f"{column.name}: lists of {kind_of_items}, split at {column.separator!r}")
    if config.label is not None:
        used = _columns_in(config.label, wanted)
        notes.append(f"{LABEL}: {config.label}" + (f"; left out {shorten_list(used)}, which tells it" if used else ""))
    return layouts, columns


def _guess(
    reader: TextReader, files: Sequence[Path], layouts: dict[str, CSVLayout | JSONLayout], names: Sequence[str]
) -> Iterator[TextColumn]:
    """What each column holds, by the first rows of some files."""
    kinds: tuple[ColumnKind, ...] = ("integer", "unsigned", "number", "boolean", "time")
    counts: dict[str, dict[str, int]] = {name: dict.fromkeys(("all", *kinds), 0) for name in names}
    texts: dict[str, list[str]] = {name: [] for name in names}
    for path in files:
        layout = layouts[str(path)]
        first = ", ".join(f"{layout.texts(name)} AS t{n}" for n, name in enumerate(names))
        # What cannot be split into columns is left out here, and reported when the rows are read.
        sample = f"FROM (SELECT {first} FROM {layout.scan(path, SKIP)} LIMIT {SAMPLE_ROWS})"
        fits = [
            f"count(t{n}) AS all{n}, "
            + ", ".join(
                f"count(*) FILTER (WHERE {TextColumn(name, kind).fits(f't{n}')}) AS {kind}{n}" for kind in kinds
            )
            for n, name in enumerate(names)
        ]
        (found,) = reader.rows(f"SELECT {', '.join(fits)} {sample}", path)
        rows = reader.rows(f"SELECT * {sample} LIMIT {LIST_ROWS}", path)
        for n, name in enumerate(names):
            for kind in counts[name]:
                counts[name][kind] += found[f"{kind}{n}"]
            texts[name] += [row[f"t{n}"] for row in rows if row[f"t{n}"] is not None]
    some = layouts[str(files[0])]
    lists = some.lists if isinstance(some, JSONLayout) else frozenset()
    for name in names:
        total = counts[name].pop("all")
        shares: dict[Any, float] = {kind: count / total for kind, count in counts[name].items()} if total else {}
        yield guess_column(name, texts[name], shares, is_json_list=name in lists)


def _chosen(guess: TextColumn, config: TextConfig) -> TextColumn:
    """A column as it was guessed, or as the config has it."""
    name = guess.name
    kind = config.types.get(name, guess.kind)
    separator = config.lists.get(name, guess.separator)
    is_list = kind in ("integers", "numbers", "texts")
    if name in config.lists and not separator:
        return TextColumn(name, kind if name in config.types and not is_list else "text")
    if name in config.lists and not is_list:
        if name in config.types:
            raise ConfigError(f"types: given {name}={kind}, but lists splits it; expected integers, numbers or texts")
        return TextColumn(name, "texts", separator)
    if is_list and not separator:
        raise ConfigError(f"types: given {name}={kind}, a list, but no separator was found; give it as --list {name}=|")
    return TextColumn(name, kind, separator if is_list else "")


def _arrow_schema(columns: Sequence[TextColumn], config: TextConfig) -> pa.Schema:
    used = _columns_in(config.label, [column.name for column in columns])
    fields = [pa.field(column.name, column.type) for column in columns if column.name not in used]
    if config.label is not None:
        if any(column.name == LABEL for column in columns):
            raise ConfigError(f"label: given {config.label!r}, but there is a column {LABEL} already")
        fields.append(pa.field(LABEL, pa.int8()))
    return pa.schema(fields)


def _columns_in(expression: str | None, names: Sequence[str]) -> list[str]:
    """Columns that a SQL expression names."""
    words = {a or b for a, b in re.findall(r'"([^"]+)"|(\w+)', expression or "")}
    return [name for name in names if name in words]


def _rows(
    reader: TextReader, layout: CSVLayout | JSONLayout, path: Path, columns: Sequence[TextColumn], config: TextConfig
) -> Iterator[tuple[pa.RecordBatch, list[Reject]]]:
    """The good rows of a file in order, batch by batch, and the bad ones among them."""
    # Names of our own begin with two underscores, so that a condition can name the columns.
    texts = [f"NULLIF({layout.texts(column.name)}, '') AS __t{n}" for n, column in enumerate(columns)]
    values = [f"{column.value(f'__t{n}')} AS __v{n}" for n, column in enumerate(columns)]
    wrong = " ".join(
        f"WHEN __t{n} IS NOT NULL AND NOT coalesce({column.fits(f'__t{n}')}, false) THEN {n}"
        for n, column in enumerate(columns)
    )
    used = _columns_in(config.label, [column.name for column in columns])
    out = [n for n, column in enumerate(columns) if column.name not in used]
    values += [f'{column.value(f"__t{n}")} AS "{column.name}"' for n, column in enumerate(columns) if n not in out]
    label = "" if config.label is None else f", ({config.label})::BOOLEAN::TINYINT AS __label"
    stored = STOP if config.bad_lines == "fail" else "rejected"
    given = f"[{', '.join(f'__t{n}' for n in range(len(columns)))}]"
    query = (
        f"SELECT {', '.join(f'__v{n}' for n in out)}{label}, __mistake, __wrong, "
        f"CASE WHEN __wrong >= 0 THEN {given}[__wrong + 1] END AS __given, "
        f"CASE WHEN __mistake IS NOT NULL OR __wrong >= 0 THEN __raw END AS __raw FROM ("
        f"SELECT *, {', '.join(values)}, CASE {wrong} ELSE -1 END AS __wrong FROM ("
        f"SELECT {', '.join(texts)}, {layout.mistake()} AS __mistake, {layout.raw()} AS __raw "
        f"FROM {layout.scan(path, stored)}))"
    )
    names = [columns[n].name for n in out] + ([LABEL] if config.label is not None else [])
    schema = _arrow_schema(columns, config)
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
        table = pa.Table.from_batches([batch]).select(list(range(len(names)))).rename_columns(names).cast(schema)
        yield table.combine_chunks(), bad
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
