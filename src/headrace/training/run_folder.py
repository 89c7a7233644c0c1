"""`RunFolder`: the output of a run, consistent with its newest checkpoint."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from headrace.config import read_yaml
from headrace.embeddings.changes.segment_folder import segments_until
from headrace.errors import ConfigError, HeadraceError
from headrace.files import new_file, write_text, writing
from headrace.observe.jsonl import JsonlWriter, read_jsonl
from headrace.paths import local_path

__all__ = ["RunFolder", "find_run"]

ID_NAME = "run_id"

LEDGER_SCHEMA = pa.schema([pa.field("step", pa.int64()), pa.field("row_id", pa.int64())])


def find_run(place: str | Path) -> Path:
    """The run folder that someone means.

    Args:
        place: The folder, the file of its job, or a folder with a `job.yaml`.

    Raises:
        ConfigError: It is none of these.
    """
    path = local_path(place, where="RUN")
    if path.is_dir():
        if (path / "metrics.jsonl").is_file() or not (path / "job.yaml").is_file():
            return path
        path = path / "job.yaml"
    elif not path.exists():
        raise ConfigError(f"{path}: no such file or folder, expected a run folder or a job file")
    values = read_yaml(path)
    run = values.get("run") if isinstance(values, dict) else None
    if not isinstance(run, str):
        raise ConfigError(f"{path}: has no key run, expected a run folder or a job file")
    return local_path(run, where=f"{path}: run", base=path.parent)


class RunFolder:
    """The output folder of a run::

        config.yaml               the resolved job, including defaults
        checkpoints/<number>/      see `CheckpointFolder`
        checkpoints/segments/      rows of delta checkpoints, see `SegmentFolder`
        publications/              versions for servers, see `PublicationFolder`
        metrics.jsonl             one line every few steps, one per window
        decisions.jsonl           automatic decisions and their reasons
        quarantine/<number>.parquet   bad rows, committed with the checkpoint of that number
        ledger/<number>.parquet       (step, row_id) of every row trained on, if enabled in the job
        report.html
        rewound/                  output newer than the checkpoint that a run resumed from; safe to delete

    Files grow between checkpoints, so after a kill they may be ahead of the newest checkpoint. `rewind` moves aside
    output that is newer than that checkpoint, so that nothing is listed twice when those steps are repeated.
    """

    def __init__(self, path: str | Path, *, quarantine: str | None = None) -> None:
        """Define a run folder; `lock` creates it.

        Args:
            path: The folder.
            quarantine: Separate folder for quarantined rows.
        """
        self.path = local_path(path, where="run")
        inside = self.path / "quarantine"
        self.quarantine = inside if quarantine is None else local_path(quarantine, where="bad_rows.path")
        self._lock: IO[str] | None = None
        self._metrics: JsonlWriter | None = None

    @property
    def publications(self) -> Path:
        """Folder of the publications."""
        return self.path / "publications"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """The metrics file."""
        return self.path / "metrics.jsonl"

    @property
    def decisions(self) -> Path:
        """The decision log."""
        return self.path / "decisions.jsonl"

    @property
    def ledger(self) -> Path:
        """Folder of the row ledger."""
        return self.path / "ledger"

    @property
    def rewound(self) -> Path:
        """Folder of output that `rewind` moved aside."""
        return self.path / "rewound"

    @property
    def _replayed(self) -> Path:
        return self.quarantine / "_replayed"

    def lock(self) -> None:
        """Make this process the run's only writer until `unlock`, or until it exits.

        Raises:
            ConfigError: The folder cannot be created or written.
            HeadraceError: Another process is writing to the run.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("a+")
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            lock.close()
            raise HeadraceError(
                f"{self.path}: process {holder} is writing to this run; wait for it, or stop it"
            ) from None
        self._lock = lock
        try:
            with writing(self.path, ConfigError):
                lock.truncate(0)
                lock.write(str(os.getpid()))
                lock.flush()
            self._own_quarantine()
        except BaseException:
            self.unlock()
            raise

    def _own_quarantine(self) -> None:
        """Refuse the quarantine of another run, whose files would be overwritten because they are named by checkpoint.

        A run is identified by the id in its folder, or by the folder's path relative to the quarantine. So either may
        be moved, both may be moved together, and the run may be deleted and started again.
        """
        if self.quarantine.parent == self.path:
            return
        with writing(self.quarantine):
            self.quarantine.mkdir(parents=True, exist_ok=True)
            here = os.path.relpath(self.path.resolve(), self.quarantine.resolve())
            mark = self.quarantine / "_owner"
            owner, place = _read_owner(mark) if mark.is_file() else (self._id(), here)
        there = self.quarantine / place
        is_copy = place != here and _read_text(there / ID_NAME) == owner
        if (owner != self._id() and place != here) or is_copy:
            raise ConfigError(
                f"{self.quarantine}: is the quarantine of {os.path.normpath(there)}; use a separate "
                f"bad_rows.path, or delete {mark} if that run is gone"
            )
        if (owner, place) != (self._id(), here) or not mark.is_file():
            write_text(mark, f"{self._id()}\n{here}\n")

    def _id(self) -> str:
        """The run's id, which stays the same if its folder is moved."""
        known = _read_text(self.path / ID_NAME)
        if known is None:
            known = uuid.uuid4().hex
            write_text(self.path / ID_NAME, known + "\n")
        return known

    def unlock(self) -> None:
        """Close the files and let other processes write to the run."""
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def write_config(self, text: str) -> None:
        """Write the resolved job."""
        write_text(self.path / "config.yaml", text)

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Append a line to the metrics; its key "checkpoint" is the number of the checkpoint that will commit it."""
        if self._metrics is None:
            self._metrics = JsonlWriter(self.metrics)
        self._metrics.write(record)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Read all metric records, except a last line truncated by a kill.

        Raises:
            DataError: Another line is damaged; `rewind` moves those aside.
        """
        return list(read_jsonl(self.metrics)) if self.metrics.exists() else []

    def write_ledger(self, number: int, steps: list[int], row_ids: list[pa.Array]) -> None:
        """Write the rows that each step since the last checkpoint trained on.

        Args:
            number: Number of the checkpoint that commits these rows; names the file.
            steps: One optimizer step per batch.
            row_ids: int64 arrays, one per batch.
        """
        step_of_row = [pa.repeat(pa.scalar(at, pa.int64()), len(ids)) for at, ids in zip(steps, row_ids, strict=True)]
        columns = [pa.chunked_array(part, pa.int64()) for part in (step_of_row, row_ids)]
        path = self.ledger / f"{number:08d}.parquet"
        with writing(path):
            self.ledger.mkdir(exist_ok=True)
        with new_file(path) as partial:
            pq.write_table(pa.table(columns, schema=LEDGER_SCHEMA), str(partial.absolute()), compression="zstd")

    def quarantined(self) -> list[Path]:
        """Quarantine files that have not been replayed, oldest first."""
        return sorted(self.quarantine.glob("*.parquet"))

    def set_aside(self, names: tuple[str, ...]) -> None:
        """Move replayed quarantine files to `quarantine/_replayed`, and others back.

        Args:
            names: Files that the checkpoint counts as replayed; after a fallback to an older checkpoint, others are
                pending again.
        """
        for path in self.quarantined():
            if path.name in names:
                self._replayed.mkdir(exist_ok=True)
                path.rename(self._replayed / path.name)
        for path in self._replayed.glob("*.parquet"):
            if path.name not in names:
                path.rename(self.quarantine / path.name)

    def describe_rewound(self, moved: Sequence[str]) -> str:
        """A line for the user about the files that `rewind` moved."""
        return f"moved output newer than the checkpoint to {self.rewound}: {', '.join(moved)}"

    def rewind(self, number: int) -> list[str]:
        """Move output newer than checkpoint `number` to `rewound`, without deleting anything.

        This includes files, checkpoints and metrics lines of higher numbers, and damaged metrics lines.

        Returns:
            Paths of the moved files, relative to the run.
        """
        assert self._metrics is None, "call rewind before the first line is written"
        aside = next(place for place in self._places_aside(number) if not place.exists())
        moved = []
        with writing(aside):
            for folder, ending in (
                (self.quarantine, ".parquet"),
                (self._replayed, ".parquet"),
                (self.ledger, ".parquet"),
                (self.checkpoints, ""),
            ):
                for path in _numbered(folder, ending, beyond=number):
                    moved.append(f"{folder.name}/{path.name}")
                    (aside / folder.name).mkdir(parents=True, exist_ok=True)
                    shutil.move(path, aside / folder.name / path.name)
                    for segment in segments_until(folder, int(path.stem)):
                        (aside / segment.relative_to(self.path)).parent.mkdir(parents=True, exist_ok=True)
                        shutil.move(segment, aside / segment.relative_to(self.path))
            for path, is_kept in ((self.metrics, _is_counted_by(number)), (self.decisions, lambda _: True)):
                if path.is_file() and _move_lines(path, is_kept, aside / path.name):
                    moved.append(path.name)
        return moved

    def _places_aside(self, number: int) -> Iterator[Path]:
        yield self.rewound / f"after-{number:08d}"
        yield from (self.rewound / f"after-{number:08d}-{again}" for again in count(2))


def _numbered(folder: Path, ending: str, *, beyond: int) -> list[Path]:
    """Files in a folder that are named by the number of a later checkpoint, in order."""
    pattern = re.compile(r"([0-9]{8,})" + re.escape(ending))
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    found = [(pattern.fullmatch(name), name) for name in names]
    return [folder / name for match, name in found if match is not None and int(match[1]) > beyond]


def _is_counted_by(number: int) -> Callable[[dict[str, Any]], bool]:
    def is_counted(record: dict[str, Any]) -> bool:
        counter = record.get("checkpoint")
        return type(counter) is int and counter <= number

    return is_counted


def _move_lines(path: Path, is_kept: Callable[[dict[str, Any]], bool], aside: Path) -> int:
    """Move damaged lines and lines not to be kept from a JSONL file to another file; returns their number."""
    kept: list[bytes] = []
    others: list[bytes] = []
    for line in path.read_bytes().splitlines(keepends=True):
        (kept if _is_whole(line, is_kept) else others).append(line)
    if others:
        aside.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(b"".join(others))
        with new_file(path) as partial:
            partial.write_bytes(b"".join(kept))
    return len(others)


def _is_whole(line: bytes, is_kept: Callable[[dict[str, Any]], bool]) -> bool:
    try:
        record = json.loads(line.decode())
    except (ValueError, RecursionError):
        return False
    return line.endswith(b"\n") and isinstance(record, dict) and is_kept(record)


def _read_owner(mark: Path) -> tuple[str, str]:
    """Id and path of the run that a quarantine belongs to."""
    lines = [*mark.read_text(encoding="utf-8", errors="replace").splitlines(), "", ""]
    place = lines[1] or lines[0]  # older marks have only the absolute path
    return lines[0], os.path.relpath(place, mark.parent.resolve()) if os.path.isabs(place) else place


def _read_text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else None
