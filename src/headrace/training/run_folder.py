"""A run folder: everything one run of a job leaves behind, consistent with its newest checkpoint."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from headrace.errors import ConfigError, HeadraceError
from headrace.observe.jsonl import JsonlWriter, read_jsonl

__all__ = ["RunFolder"]

LEDGER_SCHEMA = pa.schema([pa.field("step", pa.int64()), pa.field("row_id", pa.int64())])


class RunFolder:
    """One folder a run::

        config.yaml               the job as resolved, defaults included
        checkpoints/<number>/      see `CheckpointFolder`
        metrics.jsonl             one line every few steps, one a window
        decisions.jsonl           what was decided and why
        quarantine/<number>.parquet   bad rows, counted by the checkpoint of that number
        ledger/<number>.parquet       (step, row_id) of every row trained on, if the job asks for it
        report.html

    Files grow between checkpoints, so after a kill they may be ahead of the newest checkpoint. `rewind` takes back
    what that checkpoint does not count, so that nothing is listed twice when those steps are made again.
    """

    def __init__(self, path: str | Path, *, quarantine: str | None = None) -> None:
        """Name a run folder; it is made by `lock`.

        Args:
            path: The folder.
            quarantine: Another folder for quarantined rows.
        """
        self.path = Path(path)
        self.quarantine = self.path / "quarantine" if quarantine is None else Path(quarantine)
        self._lock: IO[str] | None = None
        self._metrics: JsonlWriter | None = None

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
    def _replayed(self) -> Path:
        return self.quarantine / "_replayed"

    def lock(self) -> None:
        """Make this process the run's only writer until `unlock`, or until it ends.

        Raises:
            ConfigError: If the folder cannot be made or written.
            HeadraceError: If another process is writing to the run.
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
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock
        self._own_quarantine()

    def _own_quarantine(self) -> None:
        """Refuse the quarantine of another run: files are named by checkpoint, so two runs would lose each other's."""
        if self.quarantine.parent == self.path:
            return
        self.quarantine.mkdir(parents=True, exist_ok=True)
        mark = self.quarantine / "_owner"
        owner = mark.read_text(encoding="utf-8").strip() if mark.exists() else str(self.path.resolve())
        if owner != str(self.path.resolve()):
            self.unlock()
            raise ConfigError(f"{self.quarantine}: is the quarantine of {owner}; give each run its own bad_rows.path")
        mark.write_text(owner + "\n", encoding="utf-8")

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
        (self.path / "config.yaml").write_text(text, encoding="utf-8")

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add one line to the metrics; its key "checkpoint" names the checkpoint that will count it."""
        if self._metrics is None:
            self._metrics = JsonlWriter(self.metrics)
        self._metrics.write(record)

    def read_metrics(self) -> list[dict[str, Any]]:
        """All metric records; a last line cut short by a kill is left out."""
        return list(read_jsonl(self.metrics)) if self.metrics.exists() else []

    def write_ledger(self, number: int, steps: list[int], row_ids: list[pa.Array]) -> None:
        """Write which rows each step since the last checkpoint trained on.

        Args:
            number: Of the checkpoint that counts these rows; names the file.
            steps: One optimizer step per batch.
            row_ids: int64 arrays, one per batch.
        """
        self.ledger.mkdir(exist_ok=True)
        step_of_row = [pa.repeat(pa.scalar(at, pa.int64()), len(ids)) for at, ids in zip(steps, row_ids, strict=True)]
        columns = [pa.chunked_array(part, pa.int64()) for part in (step_of_row, row_ids)]
        write_atomically(pa.table(columns, schema=LEDGER_SCHEMA), self.ledger / f"{number:08d}.parquet")

    def quarantined(self) -> list[Path]:
        """Quarantine files that wait for a replay, oldest first."""
        return sorted(self.quarantine.glob("*.parquet"))

    def set_aside(self, names: tuple[str, ...]) -> None:
        """Keep replayed quarantine files in `quarantine/_replayed`, where nothing reads them again, and only those.

        Args:
            names: Files the checkpoint counts as replayed; after going back to an older one, others wait again.
        """
        for path in self.quarantined():
            if path.name in names:
                self._replayed.mkdir(exist_ok=True)
                path.rename(self._replayed / path.name)
        for path in self._replayed.glob("*.parquet"):
            if path.name not in names:
                path.rename(self.quarantine / path.name)

    def rewind(self, number: int) -> list[str]:
        """Take back what checkpoint `number` and those before it do not count; returns what was removed or cut."""
        removed = []
        for folder in (self.quarantine, self._replayed, self.ledger):
            for path in sorted(folder.glob("*.parquet")):
                if path.stem.isdigit() and int(path.stem) > number:
                    path.unlink()
                    removed.append(f"{folder.name}/{path.name}")
        if self.metrics.exists():
            assert self._metrics is None, "rewind comes before the first line of this process"
            kept = [record for record in self.read_metrics() if record["checkpoint"] <= number]
            text = "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in kept)
            if self.metrics.stat().st_size != len(text.encode()):
                temporary = self.metrics.with_suffix(".partial")
                temporary.write_text(text, encoding="utf-8")
                temporary.rename(self.metrics)
                removed.append(self.metrics.name)
        return removed


def write_atomically(table: pa.Table, path: Path) -> None:
    """Write a Parquet file that appears whole or not at all."""
    temporary = path.with_suffix(".partial")
    pq.write_table(table, temporary, compression="zstd")
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.rename(path)
