"""JSON Lines files that are appended while a job runs and can be read at any time, even after a kill."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from headrace.errors import DataError
from headrace.files import writing
from headrace.messages import to_json

__all__ = ["JsonlWriter", "read_jsonl"]


class JsonlWriter:
    """Appends records to a file, one JSON object per line. Thread-safe.

    Each line reaches the operating system before `write` returns, so a killed process loses none. A line torn by a
    crash of the machine is removed when the file is opened again.
    """

    def __init__(self, path: str | Path) -> None:
        """Open or create the file and its folder.

        Args:
            path: The file; existing records are kept.

        Raises:
            StorageError: It cannot be opened.
        """
        self.path = Path(path)
        self._lock = threading.Lock()
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _cut_torn_line(self.path)
            self._file = self.path.open("ab", buffering=0)  # so that after an error nothing is left to write on closing

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record; NaN and infinity become null, and numpy and torch scalars become plain numbers.

        Raises:
            StorageError: It cannot be written; the file is unchanged.
        """
        line = to_json(record) + "\n"
        left = memoryview(line.encode())
        with self._lock, writing(self.path):
            end = self._file.seek(0, 2)
            try:
                while left:
                    left = left[self._file.write(left) :]
            except OSError:
                self._file.truncate(end)
                raise

    def close(self) -> None:
        """Close the file; safe to call twice."""
        with self._lock:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def read_jsonl(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a file, without a last line that is still being written.

    Raises:
        DataError: Another line is not a JSON object; the message names file and line.
    """
    path = Path(path)
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                return  # the newline is written last, so the record may be truncated anywhere
            if line.isspace():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}: line {number}: not JSON: {error}") from error
            if not isinstance(record, dict):
                raise DataError(f"{path}: line {number}: given {type(record).__name__}, expected an object")
            yield record


def _cut_torn_line(path: Path) -> None:
    if not path.is_file():
        return
    with path.open("rb+") as file:
        end = file.seek(0, 2)
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                file.truncate(start + newline + 1)
                return
            end = start
        file.truncate(0)
