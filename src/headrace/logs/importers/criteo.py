"""`import_criteo`: converts Criteo's 40-column text to Parquet, in file order and bounded memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from headrace.config import Config
from headrace.errors import ConfigError, DataError
from headrace.files import write_text
from headrace.logs.importers.compressed import open_text, readable_input
from headrace.logs.importers.criteo_parser import NUM_IDS, NUM_INTEGERS, BadLine, ParsedLines, parse_lines
from headrace.logs.schema import DenseColumn, IdColumn, LabelColumn, Schema
from headrace.logs.source import REJECT_SCHEMA
from headrace.logs.writer import ParquetLogWriter
from headrace.paths import local_path

__all__ = ["CriteoConfig", "CriteoImport", "criteo_schema", "import_criteo"]

BLOCK_BYTES = 4 << 20
"""Bytes of text parsed at once; with its columns it takes about five times as much memory."""

ARCHIVE_MEMBER = "train.txt"
"""The only file with labels in Kaggle's archive (readme.txt, test.txt, train.txt)."""

MAX_LINE_BYTES = 1 << 20
"""A longer line means that the file has another format; without this limit a file without newlines would be read
completely."""


class CriteoConfig(Config):
    """How to handle bad lines, and how to split the output.

    Attributes:
        bad_lines: "fail" at the first bad line, "drop" bad lines, or "quarantine" them next to the output.
        parts: Number of equal files to split into, in file order, or None.
        rows_per_file: Maximum rows per file, or None for one file.
    """

    bad_lines: Literal["fail", "drop", "quarantine"] = "fail"
    parts: int | None = Field(default=None, ge=1)
    rows_per_file: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_way_to_cut(self) -> CriteoConfig:
        if self.parts is not None and self.rows_per_file is not None:
            raise ValueError("only one of parts and rows_per_file")
        return self


@dataclass(frozen=True)
class CriteoImport:
    """The result of `import_criteo`; lines = rows + dropped + quarantined.

    Attributes:
        lines: Lines read.
        rows: Rows written.
        dropped: Bad lines dropped.
        quarantined: Bad lines quarantined.
        files: The Parquet files.
        quarantine: Folder of quarantined lines, or None if there are none.
        member: Name of the file read from a tar archive, or "".
    """

    lines: int
    rows: int
    dropped: int
    quarantined: int
    files: tuple[Path, ...]
    quarantine: Path | None
    member: str = ""


def criteo_schema() -> Schema:
    """The schema of the imported log; `row` is the line's number in the file, from 0."""
    return Schema(
        labels=(LabelColumn(name="label"),),
        dense=tuple(DenseColumn(name=f"I{i}") for i in range(1, NUM_INTEGERS + 1)),
        ids=tuple(IdColumn(name=f"C{i}") for i in range(1, NUM_IDS + 1)),
        row_id="row",
    )


def import_criteo(
    path: str | Path,
    out: str | Path,
    config: CriteoConfig | None = None,
    *,
    on_block: Callable[[int, int], None] | None = None,
) -> CriteoImport:
    """Convert a Criteo text file to a Parquet folder, published atomically when all lines are read.

    Args:
        path: Tab-separated text without a header, plain or compressed: label, 13 integers, 26 ids of 8 hex digits. May
            be a pipe, or a tar archive with a file `train.txt`. Empty lines at the end are ignored.
        out: Output folder for the Parquet files and `schema.yaml`; new or empty. Quarantined lines are written to a
            folder next to it, `NAME-quarantine`.
        config: Settings; None for the defaults.
        on_block: Called after each block with the bytes and rows read so far.

    Raises:
        ConfigError: The file does not exist, or the output folder is not empty.
        DataError: The file is empty, or has a bad line under "fail"; the message has file, line, column, given and
            expected value.
    """
    config = config or CriteoConfig()
    path, out = local_path(path, where="PATH"), local_path(out, where="OUT")
    if not readable_input(path):
        raise ConfigError(f"{path}: {'a folder, expected a file' if path.is_dir() else 'no such file'}")
    if config.parts is not None and not path.is_file():
        raise ConfigError(f"{path}: parts needs a regular file, which is read twice; for a pipe, use rows_per_file")
    quarantine = out.parent / f"{out.resolve().name}-quarantine"
    for folder in (out, quarantine) if config.bad_lines == "quarantine" else (out,):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder}: is not empty; choose a new or empty folder")
    num_lines = _count_lines(path) if config.parts is not None else 0
    cuts = [part * num_lines // config.parts for part in range(1, config.parts)] if config.parts is not None else []
    with ExitStack() as stack:
        work = _Import(path, out, quarantine, config, cuts, stack)
        for block in _read_blocks(path):
            work.member = block.member
            work.take(parse_lines(block.text))
            if on_block is not None:
                on_block(block.bytes_read, work.rows)
        if work.lines == 0:
            raise DataError(f"{path}: is empty, expected Criteo's tab-separated text")
    write_text(out / "schema.yaml", criteo_schema().to_yaml())
    return work.result()


class _Import:
    """Writes parsed lines in file order."""

    def __init__(
        self, path: Path, out: Path, quarantine: Path, config: CriteoConfig, cuts: list[int], stack: ExitStack
    ) -> None:
        self._path, self._config, self._stack = path, config, stack
        self._quarantine_folder = quarantine
        self._quarantine: ParquetLogWriter | None = None
        self._writer = stack.enter_context(
            ParquetLogWriter(out, schema=_arrow_schema(), rows_per_file=config.rows_per_file)
        )
        self._cuts = cuts
        self.lines = self.rows = self.num_bad = 0
        self.member = ""

    def take(self, parsed: ParsedLines) -> None:
        """Write the good lines, and handle bad ones according to the policy."""
        if parsed.bad:
            self._take_bad(parsed.bad)
        table = _to_table(parsed, self.lines)
        written = 0
        while self._cuts and self._cuts[0] < self.lines + parsed.num_lines:
            # The row that starts a new file: the first good line at or after the cut.
            cut = int(np.searchsorted(parsed.lines, self._cuts.pop(0) - self.lines))
            self._writer.write(table.slice(written, cut - written))
            self._writer.start_file()
            written = cut
        self._writer.write(table.slice(written))
        self.lines += parsed.num_lines
        self.rows += table.num_rows

    def result(self) -> CriteoImport:
        """The final result."""
        quarantined = self.num_bad if self._config.bad_lines == "quarantine" else 0
        return CriteoImport(
            lines=self.lines,
            rows=self.rows,
            dropped=self.num_bad - quarantined,
            quarantined=quarantined,
            files=self._writer.files,
            quarantine=self._quarantine_folder if self._quarantine is not None else None,
            member=self.member,
        )

    @property
    def _where(self) -> str:
        return f"{self._path}/{self.member}" if self.member else str(self._path)

    def _take_bad(self, bad: tuple[BadLine, ...]) -> None:
        self.num_bad += len(bad)
        if self._config.bad_lines == "fail":
            first = bad[0]
            column = f", column {first.column}" if first.column is not None else ""
            raise DataError(f"{self._where}: line {self.lines + first.line + 1}{column}: {first.reason}")
        if self._config.bad_lines == "quarantine":
            if self._quarantine is None:
                self._quarantine = self._stack.enter_context(
                    ParquetLogWriter(self._quarantine_folder, schema=REJECT_SCHEMA)
                )
            rows = [
                {
                    "file": self._where,
                    "row_group": None,
                    "row": self.lines + line.line,
                    "column": line.column,
                    "reason": line.reason,
                    "raw": json.dumps({"line": line.text}),
                }
                for line in bad
            ]
            self._quarantine.write(pa.Table.from_pylist(rows, schema=REJECT_SCHEMA))


def _arrow_schema() -> pa.Schema:
    fields = [("row", pa.int64()), ("label", pa.int8())]
    fields += [(f"I{i}", pa.int32()) for i in range(1, NUM_INTEGERS + 1)]
    fields += [(f"C{i}", pa.int64()) for i in range(1, NUM_IDS + 1)]
    return pa.schema(fields)


def _to_table(parsed: ParsedLines, first_line: int) -> pa.Table:
    schema = _arrow_schema()
    arrays = [pa.array(parsed.lines + first_line)]
    for values, given, kind in zip(parsed.values, parsed.given, schema.types[1:], strict=True):
        arrays.append(pa.array(values.astype(kind.to_pandas_dtype()), mask=~given))
    return pa.Table.from_arrays(arrays, schema=schema)


def _count_lines(path: Path) -> int:
    return sum(block.text.count(b"\n") for block in _read_blocks(path))


class _Block(NamedTuple):
    """Complete lines, the bytes of the file read so far, and the name of the file in the archive."""

    text: bytes
    bytes_read: int
    member: str


def _read_blocks(path: Path) -> Iterator[_Block]:
    """Yield blocks of complete lines, adding a missing final newline; empty lines at the end are ignored."""
    with open_text(path, ARCHIVE_MEMBER) as (stream, raw, member):
        rest = b""
        while chunk := stream.read(BLOCK_BYTES):
            text = rest + chunk
            stop = text.rfind(b"\n") + 1
            if len(text) - stop > MAX_LINE_BYTES:
                raise DataError(f"{path}: a line of over {MAX_LINE_BYTES:,} bytes, expected Criteo's text")
            filled = len(text[:stop].rstrip(b"\r\n"))
            stop = text.find(b"\n", filled) + 1 if filled else 0  # empty lines after it may be the end
            rest = text[stop:]
            if stop:
                yield _Block(text[:stop], raw.tell(), member)
        if rest.strip(b"\r\n"):
            yield _Block(rest.rstrip(b"\r\n") + b"\n", raw.tell(), member)
