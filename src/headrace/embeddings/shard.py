"""`Shard`: the tables one process owns, and the training they belong to; knows nothing of the network.

A *session* is one stretch of training: it begins at a checkpoint (or at first values) and ends when another begins. A
shard that was killed has none; trainers then begin a new one from their newest checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headrace.embeddings.merging import Push
from headrace.embeddings.served_table import ServedTable
from headrace.embeddings.shard_table import ShardTable, TableSpec
from headrace.embeddings.sharding import ShardingPlan
from headrace.embeddings.step_merger import StepMerger
from headrace.embeddings.table_state import Columns
from headrace.errors import CheckpointError, ShardError, ShardLost

__all__ = ["OpenRequest", "Shard", "part_folder"]

NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")
PARTIAL = re.compile(r"\.[0-9]{8}\.[0-9]+\.partial")


@dataclass(frozen=True)
class OpenRequest:
    """What a trainer asks for when it begins.

    Attributes:
        run: Which training this is, such as a hash of the run's folder; another run may not take over a busy shard.
        session: Of this stretch of training; the same for all its trainers.
        shard: Which shard of the plan this one is.
        num_trainers: Trainers of the session.
        tables: Name -> `TableSpec` and `ShardingPlan`.
        step: The last step that is made.
        checkpoint: Number of the checkpoint to begin from; None for first values.
        merged: Whether pushes of a step are merged (synchronous) or applied as they come.
    """

    run: str
    session: str
    shard: int
    num_trainers: int
    tables: Mapping[str, tuple[TableSpec, ShardingPlan]]
    step: int
    checkpoint: int | None
    merged: bool

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        tables = {name: {"spec": spec.to_dict(), "plan": plan.to_dict()} for name, (spec, plan) in self.tables.items()}
        return {field: getattr(self, field) for field in self.__dataclass_fields__} | {"tables": tables}

    @classmethod
    def from_dict(cls, values: Any) -> OpenRequest:
        """From `to_dict`.

        Raises:
            ShardError: Something is missing or of the wrong type.
        """
        try:
            tables = {
                str(name): (TableSpec.from_dict(table["spec"]), ShardingPlan.from_dict(table["plan"]))
                for name, table in values["tables"].items()
            }
            checkpoint = values["checkpoint"]
            return cls(
                run=str(values["run"]),
                session=str(values["session"]),
                shard=int(values["shard"]),
                num_trainers=int(values["num_trainers"]),
                tables=tables,
                step=int(values["step"]),
                checkpoint=None if checkpoint is None else int(checkpoint),
                merged=bool(values["merged"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ShardError(f"open: {type(error).__name__}: {error}") from error

    def checksum(self) -> str:
        """The same for all trainers that mean the same training."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


class Shard:
    """Thread-safe.

    Args:
        checkpoints: Folder of the run's checkpoints as this process sees it; without it there are none.
        expected: Tables this shard will serve, from a job file; another request is refused.
        hold_s: How long a request may wait for other trainers.
    """

    def __init__(
        self,
        *,
        checkpoints: Path | None = None,
        expected: Mapping[str, TableSpec] | None = None,
        hold_s: float = 120.0,
    ) -> None:
        self.checkpoints = checkpoints
        self._expected = expected
        self._hold_s = hold_s
        self._lock = threading.Lock()
        self._request: OpenRequest | None = None
        self._tables: dict[str, ServedTable] = {}
        self._streams: dict[str, int] = {}

    def open(self, request: OpenRequest) -> dict[str, Any]:
        """Begin a session, or join the one there is.

        Returns:
            `rows`: rows of all tables; `joined`: whether the session was there before.

        Raises:
            ShardError: It does not agree with the other trainers' request or the shard's job file, or the shard is busy
                with another run.
            CheckpointError: The checkpoint cannot be used.
        """
        with self._lock:
            now = self._request
            joined = now is not None and now.session == request.session
            if now is not None and joined:
                _check_same(now, request)
            else:
                self._check(request, now)
                tables = {name: self._make_table(name, request) for name in request.tables}
                for table in self._tables.values():
                    table.close("another session has begun")
                self._request, self._tables = request, tables
            return {"rows": sum(t.table.table.num_rows for t in self._tables.values()), "joined": joined}

    @contextmanager
    def stream(self, session: str, table: str) -> Iterator[ServedTable]:
        """A table, for as long as a trainer is connected to it.

        Raises:
            ShardLost: The session is not the one there is.
            ShardError: There is no such table.
        """
        with self._lock:
            served = self._find(session, table)
            self._streams[session] = self._streams.get(session, 0) + 1
        try:
            yield served
        finally:
            with self._lock:
                self._streams[session] -= 1

    def end_window(self, session: str, window: int, step: int) -> int:
        """`ServedTable.end_window` of all tables; returns how many rows were freed."""
        with self._lock:
            tables = self._of_session(session)
        return sum(table.end_window(window, step) for table in tables.values())

    def save(self, session: str, folder: str, step: int) -> list[str]:
        """Write this shard's part of all tables into a checkpoint that is being written.

        Args:
            session: As in `open`.
            folder: Name of the checkpoint's temporary folder in the folder of checkpoints.
            step: The step it is consistent at.

        Returns:
            The files written, relative to `folder`.

        Raises:
            ShardError: The folder is not such a one, or the step has passed.
        """
        with self._lock:
            tables, request = self._of_session(session), self._request
        assert request is not None
        if self.checkpoints is None:
            raise ShardError("save: this shard has no folder of checkpoints; start it with --checkpoints DIR or a job")
        if not PARTIAL.fullmatch(folder) or not (self.checkpoints / folder).is_dir():
            raise ShardError(f"save: {folder}: expected a checkpoint being written in {self.checkpoints}")
        written = []
        for name, table in tables.items():
            _, plan = request.tables[name]
            place = part_folder(self.checkpoints / folder, name, request.shard, plan.num_shards)
            place.mkdir(parents=True)
            for column, array in table.part(step).items():
                with (place / f"{column}.npy").open("wb") as file:
                    np.save(file, array, allow_pickle=False)
                    file.flush()
                    os.fsync(file.fileno())
                written.append(str((place / f"{column}.npy").relative_to(self.checkpoints / folder)))
        return written

    def status(self) -> dict[str, Any]:
        """What it serves, as JSON can hold it."""
        with self._lock:
            request, tables = self._request, dict(self._tables)
            streams = sum(self._streams.values())
        if request is None:
            return {"session": None}
        return {
            "session": request.session,
            "run": request.run,
            "shard": request.shard,
            "num_trainers": request.num_trainers,
            "streams": streams,
            "tables": {
                name: {
                    "applied": table.applied,
                    "rows": table.table.table.num_rows,
                    "bytes": table.table.table.num_bytes,
                    **asdict(table.counts),
                }
                for name, table in tables.items()
            },
        }

    def _check(self, request: OpenRequest, now: OpenRequest | None) -> None:
        """Refuse a new session that this shard cannot or should not serve."""
        if now is not None and now.run != request.run and self._streams.get(now.session, 0):
            raise ShardError(f"busy with run {now.run} of {now.num_trainers} trainers; stop it, or use another shard")
        if request.num_trainers < 1 or not request.tables:
            raise ShardError(f"open: {request.num_trainers} trainers and {len(request.tables)} tables, expected some")
        for name, (spec, plan) in request.tables.items():
            if not NAME.fullmatch(name):
                raise ShardError(f"open: table {name!r}: expected letters, digits, - and _")
            if not 0 <= request.shard < plan.num_shards or len(plan.owners) != len(spec.spaces):
                raise ShardError(
                    f"open: table {name}: shard {request.shard} of {plan.num_shards}, "
                    f"{len(plan.owners)} owners for {len(spec.spaces)} spaces"
                )
            if self._expected is not None and self._expected.get(name) != spec:
                raise ShardError(f"open: table {name} is not the one of this shard's job file")

    def _make_table(self, name: str, request: OpenRequest) -> ServedTable:
        spec, plan = request.tables[name]
        table = ShardTable(spec, plan, request.shard)
        if request.checkpoint is not None:
            table.load(self._read_parts(name, request.checkpoint))
        merger: StepMerger[Push] = StepMerger(request.num_trainers, merged=request.merged, applied=request.step)
        return ServedTable(name, table, merger, hold_s=self._hold_s)

    def _read_parts(self, name: str, checkpoint: int) -> list[Columns]:
        """The parts of a saved table, or the one of a table that was in one process."""
        if self.checkpoints is None:
            raise CheckpointError("this shard has no folder of checkpoints; start it with --checkpoints DIR or a job")
        folder = self.checkpoints / f"{checkpoint:08d}" / "tables" / name
        folders = sorted(path for path in folder.glob("*") if path.is_dir()) or [folder]
        parts = [
            {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in sorted(place.glob("*.npy"))}
            for place in folders
        ]
        if not parts[0]:
            raise CheckpointError(f"{folder}: holds no table; does the shard see the run's checkpoints?")
        return parts

    def _of_session(self, session: str) -> dict[str, ServedTable]:
        if self._request is None:
            raise ShardLost("has no session: it was started after this training began")
        if self._request.session != session:
            raise ShardLost(f"serves another session, of run {self._request.run}")
        return self._tables

    def _find(self, session: str, table: str) -> ServedTable:
        tables = self._of_session(session)
        if table not in tables:
            raise ShardError(f"table {table!r}: expected one of: {', '.join(tables)}")
        return tables[table]


def part_folder(checkpoint: Path, table: str, shard: int, num_shards: int) -> Path:
    """Where a shard's part of a table lies in a checkpoint."""
    return checkpoint / "tables" / table / f"shard-{shard:04d}-of-{num_shards:04d}"


def _check_same(ours: OpenRequest, theirs: OpenRequest) -> None:
    """Refuse a trainer that means another training under the same session."""
    if ours.checksum() == theirs.checksum():
        return
    a, b = ours.to_dict(), theirs.to_dict()
    for name in a["tables"]:
        a[f"tables.{name}"], b[f"tables.{name}"] = a["tables"][name], b["tables"].get(name)
    key = next((key for key in a if key != "tables" and a[key] != b[key]), "tables")
    raise ShardError(f"open: trainers disagree on {key}: the first said {a[key]}, this one {b[key]}")
