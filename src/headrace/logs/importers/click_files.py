"""Reads the hourly CSV files of a click log in order, from a folder or a (compressed) tar archive."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pa_csv

from headrace.errors import ConfigError, DataError
from headrace.logs.files import natural_key
from headrace.logs.importers.compressed import open_stream, readable_input

__all__ = ["ClickFile", "iterate_click_files", "read_clicks", "total_bytes"]


@dataclass(frozen=True)
class ClickFile:
    """One hourly file.

    Attributes:
        number: Position in the order of files, from 0.
        name: Name, for error messages and to recognise the file.
        content: CSV text.
        bytes_read: Bytes of the input read up to the end of this file (compressed bytes for an archive).
    """

    number: int
    name: str
    content: pa.Buffer
    bytes_read: int


def iterate_click_files(path: Path) -> Iterator[ClickFile]:
    """Yield the `.csv` files of a folder or tar archive in order of their names, one in memory at a time.

    Names are in natural order: `hour_9.csv` comes before `hour_10.csv`.

    Raises:
        ConfigError: The path does not exist or contains no CSV file.
        DataError: An archive is damaged, or its files are not in order of their names.
    """
    found = False
    for file in _from_folder(path) if path.is_dir() else _from_archive(path):
        found = True
        yield file
    if not found:
        raise ConfigError(f"{path}: contains no .csv file, expected one per hour")


def total_bytes(path: Path) -> int:
    """The final value of `ClickFile.bytes_read` (an archive may have a few more bytes)."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.glob("*.csv"))
    return path.stat().st_size if path.is_file() else 0


def read_clicks(file: ClickFile, columns: Sequence[str], where: Path) -> dict[str, npt.NDArray[np.int64]]:
    """Read columns of an hourly file as int64, in file order.

    Raises:
        DataError: A column is missing, or a value is missing or not an integer; the message names the file, and the row
            if known.
    """
    options = pa_csv.ConvertOptions(
        include_columns=list(columns), column_types={name: pa.int64() for name in columns}, null_values=[""]
    )
    at = f"{where}: {file.name}"
    try:
        # A file is a single block, because threads would only compete with the writer.
        read = pa_csv.ReadOptions(use_threads=False, block_size=max(file.content.size, 1 << 16))
        table = pa_csv.read_csv(pa.BufferReader(file.content), read_options=read, convert_options=options)
    except (pa.ArrowInvalid, pa.ArrowKeyError, KeyError) as error:
        raise DataError(f"{at}: {error}") from error
    out = {}
    for name in columns:
        column = table.column(name)
        if column.null_count:
            row = int(np.flatnonzero(column.is_null().to_numpy())[0])
            raise DataError(f"{at}: row {row + 1}, column {name}: empty, expected an integer")
        out[name] = np.ascontiguousarray(column.to_numpy())
    return out


def _from_folder(folder: Path) -> Iterator[ClickFile]:
    bytes_read = 0
    for number, path in enumerate(sorted(folder.glob("*.csv"), key=lambda path: natural_key(path.name))):
        content = pa.py_buffer(path.read_bytes())
        bytes_read += content.size
        yield ClickFile(number, path.name, content, bytes_read)


def _from_archive(path: Path) -> Iterator[ClickFile]:
    if not readable_input(path):
        raise ConfigError(f"{path}: no such file or folder")
    last, number = "", 0
    with open_stream(path) as (stream, raw):
        try:
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    if not (member.isfile() and member.name.endswith(".csv")):
                        continue
                    if last and natural_key(member.name) <= natural_key(last):
                        raise DataError(
                            f"{path}: {member.name} comes after {last}; files must be in the order of their names, "
                            "extract the archive and import the folder"
                        )
                    entry = archive.extractfile(member)
                    assert entry is not None  # a regular file
                    yield ClickFile(number, Path(member.name).name, pa.py_buffer(entry.read()), raw.tell())
                    last, number = member.name, number + 1
        except tarfile.TarError as error:
            raise DataError(f"{path}: not a readable tar archive: {error}") from error
        while stream.read(1 << 20):  # to the end, so that a truncated archive is detected
            pass
