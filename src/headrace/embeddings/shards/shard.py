"""`Shard`: the table groups of one shard process, and their session; independent of the network.

A *session* is a period of training that starts at a checkpoint (or at initial values) and ends when another session
starts. A restarted shard has no session; trainers then open a new one from their newest checkpoint.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from headrace.embeddings.changes.chains import read_chains
from headrace.embeddings.changes.log import CHECKPOINTS, PUBLICATIONS, RowBlock
from headrace.embeddings.changes.segment_folder import SegmentFolder
from headrace.embeddings.changes.segments import SegmentEntry
from headrace.embeddings.shards.members import SessionMembers
from headrace.embeddings.shards.merging import TrainerUpdate
from headrace.embeddings.shards.plan import ShardingPlan
from headrace.embeddings.shards.requests import Consumer, OpenRequest
from headrace.embeddings.shards.served_table_group import EndedWindow, ServedTableGroup
from headrace.embeddings.shards.step_merger import StepMerger
from headrace.embeddings.shards.table_group import TableGroupSpec, load_part, make_part
from headrace.embeddings.shards.taken_deltas import TakenDeltas, write_columns
from headrace.embeddings.storage.host import HostStorage
from headrace.embeddings.storage.protocol import MakeStorage
from headrace.embeddings.tables.partitions import partition_count_of, separated_columns
from headrace.embeddings.tables.seen_keys import SeenKeys
from headrace.embeddings.tables.state import Columns
from headrace.errors import CheckpointError, ShardError, ShardLost
from headrace.files import map_array, writing

__all__ = ["Shard", "part_folder", "saved_partition_count"]

CURSORS: dict[Consumer, str] = {"checkpoints": CHECKPOINTS, "publications": PUBLICATIONS}

PARTIAL = re.compile(r"\.[0-9]{8}\.[0-9]+\.partial")


class Shard:
    """The table groups of one shard process. Thread-safe.

    Args:
        checkpoints: Checkpoint folder of the run, as a path on this machine; None for no checkpoints.
        expected: Table groups that this shard serves, from a job file; requests for others are refused.
        hold_s: Maximum time that a request may wait for other trainers.
        make_storage: Creates the storage of each table group.
    """

    def __init__(
        self,
        *,
        checkpoints: Path | None = None,
        expected: Mapping[str, TableGroupSpec] | None = None,
        hold_s: float = 120.0,
        make_storage: MakeStorage = HostStorage,
    ) -> None:
        self.checkpoints = checkpoints
        self._expected = expected
        self._hold_s = hold_s
        self._make_storage = make_storage
        self._lock = threading.Lock()
        self._request: OpenRequest | None = None
        self._served: dict[str, ServedTableGroup] = {}
        self._members = SessionMembers(0)
        self._saving: dict[Consumer, threading.Lock] = {each: threading.Lock() for each in CURSORS}
        self._deltas: dict[Consumer, TakenDeltas] = {}

    def open(self, request: OpenRequest, client: str) -> dict[str, Any]:
        """Start a session, or join the current one.

        Args:
            request: Request of the trainer.
            client: Unique name of the client process, equal in all its calls.

        Returns:
            `rows`: number of rows of all table groups; `joined`: whether the session existed before; `table_groups`:
            for each, its `version`, `window_starts`, the start versions of recent windows, and `rows`, the number of
            ids with a row or waiting for one.

        Raises:
            ShardError: The request differs from those of other trainers or from the shard's job file, the shard is busy
                with another run, or the trainer number is taken.
            CheckpointError: The checkpoint cannot be used.
        """
        with self._lock:
            now = self._request
            joined = now is not None and now.session == request.session
            if now is not None and joined:
                _check_same(now, request)
            else:
                self._check(request, now)
                served = {name: self._make_group(name, request) for name in request.table_groups}
                for group in self._served.values():
                    group.close("another session has begun")
                self._request, self._served = request, served
                versions = {name: group.rows.version for name, group in served.items()}
                self._deltas = {
                    "checkpoints": TakenDeltas(request.checkpoint, versions),
                    "publications": TakenDeltas(None, versions),
                }
                self._members = SessionMembers(request.num_trainers)
            self._members.join(client, request.trainer)
            return {
                "rows": sum(group.rows.num_rows for group in self._served.values()),
                "joined": joined,
                "table_groups": {
                    name: {
                        "version": group.rows.version,
                        "window_starts": group.rows.window_starts,
                        "rows": group.rows.num_ids,
                    }
                    for name, group in self._served.items()
                },
            }

    @contextmanager
    def stream(self, session: str, table_group: str, trainer: int, client: str) -> Iterator[ServedTableGroup]:
        """Context of a trainer's stream to a table group.

        Raises:
             ShardLost: The session is not the current one.
            ShardError: The table group or trainer does not exist, or the trainer number is taken by another client.
        """
        with self._lock:
            served, members = self._find(session, table_group), self._members
            seat = members.enter(client, trainer)
        try:
            yield served
        finally:
            with self._lock:
                members.leave(seat)

    def end_window(
        self,
        session: str,
        window: int,
        step: int,
        client: str,
        budgets: Mapping[str, Mapping[int, int]] | None = None,
    ) -> dict[str, EndedWindow]:
        """Call `ServedTableGroup.end_window` of all table groups, with the budgets of each, if any are given."""
        with self._lock:
            groups = self._of_session(session)
            self._members.check(client, "end_window")
        for name in budgets or {}:
            self._find(session, name)
        return {name: group.end_window(window, step, (budgets or {}).get(name)) for name, group in groups.items()}

    def save(self, session: str, folder: str, step: int, client: str) -> list[str]:
        """Write this shard's part of all table groups into an incomplete checkpoint.

        A repeated call writes the same bytes again, in case the first answer was lost.

        Args:
            session: Session, as in `open`.
            folder: Name of the checkpoint's temporary folder within the checkpoint folder.
            step: Step of the checkpoint.
            client: Client, as in `open`.

        Returns:
            Paths of the files written, relative to `folder`.

        Raises:
            ShardError: The folder is not a temporary checkpoint folder, a later step is applied, or the client is not a
                trainer of the session.
            CheckpointError: The files cannot be written.
        """
        with self._lock:
            groups, request = self._of_session(session), self._request
            self._members.check(client, "save")
        assert request is not None
        checkpoints = self._folder_of_checkpoints(folder)
        written = []
        with self._saving["checkpoints"]:
            for name, group in groups.items():
                places = _part_folders(checkpoints / folder, name, request)
                for place, columns in zip(places, group.parts(step), strict=True):
                    with writing(place, CheckpointError):
                        files = write_columns(columns, place)
                    written += [str(file.relative_to(checkpoints / folder)) for file in files]
        return written

    def record_changes(self, session: str, consumer: Consumer, number: int | None, client: str) -> None:
        """Record changes from now on, so that the next checkpoint continues the one that the session began with.

        Args:
            session: Session, as in `open`.
            consumer: Who needs them.
            number: The publication that has the state of now; None for checkpoints.
            client: Client, as in `open`.

        Raises:
            ShardError: The client is not a trainer of the session.
        """
        with self._lock:
            groups = self._of_session(session)
            self._members.check(client, "record_changes")
        for group in groups.values():
            group.record_changes(CURSORS[consumer])
        if number is not None:
            versions = {name: group.rows.version for name, group in groups.items()}
            self._deltas[consumer] = TakenDeltas(number, versions)

    def take_deltas(
        self,
        session: str,
        consumer: Consumer,
        number: int,
        step: int,
        saved: int | None,
        everything: Sequence[str],
        client: str,
    ) -> None:
        """Copy what changed in this shard's parts since a checkpoint or a publication, for `write_deltas`.

        A repeated call does nothing, in case the first answer was lost.

        Args:
            session: Session, as in `open`.
            consumer: What the copies are for.
            number: Its number.
            step: Its step.
            saved: The complete checkpoint that it continues: that of the last call, or the one of `open`; None to copy
                everything.
            everything: Table groups of which everything is copied in any case.
            client: Client, as in `open`.

        Raises:
            ShardError: A later step is applied, or the client is not a trainer of the session.
        """
        with self._lock:
            groups, deltas = self._of_session(session), self._deltas[consumer]
            self._members.check(client, "take_deltas")
        with self._saving[consumer]:
            for name, group in groups.items():
                if deltas.number(name) != number:
                    version = None if name in everything else deltas.version(name, saved)
                    deltas.put(name, number, group.deltas(step, saved=version, consumer=CURSORS[consumer]))

    def write_deltas(
        self,
        session: str,
        consumer: Consumer,
        folder: str,
        names: Mapping[str, Sequence[str]],
        as_int8: bool,
        client: str,
    ) -> dict[str, list[SegmentEntry]]:
        """Write the copies of `take_deltas` as segments, and the columns that are not by key into a checkpoint.

        A repeated call returns what the first one did.

        Args:
            session: Session, as in `open`.
            consumer: What the copies are for.
            folder: Name of its temporary folder, within the checkpoint folder or the folder of publications beside it.
            names: File names of the segments of each table group, one for each part.
            as_int8: Whether weights are stored as int8.
            client: Client, as in `open`.

        Returns:
            The segments of each table group.

        Raises:
            ShardError: The folder is not a temporary checkpoint folder, nothing was copied, or the client is not a
                trainer of the session.
            CheckpointError: The files cannot be written.
        """
        with self._lock:
            groups, request, deltas = self._of_session(session), self._request, self._deltas[consumer]
            self._members.check(client, "write_deltas")
        assert request is not None
        root = self._folder_of_checkpoints(folder, consumer)
        if {*names} != {*groups}:
            raise ShardError(f"write_deltas: names of {', '.join(names)}, expected {', '.join(groups)}")
        with self._saving[consumer]:
            for name in groups:
                places = _part_folders(root / folder, name, request)
                deltas.write(name, places, SegmentFolder(root).place(name), names[name], as_int8=as_int8)
        return {name: deltas.entries(name) for name in groups}

    def _folder_of_checkpoints(self, folder: str, consumer: Consumer = "checkpoints") -> Path:
        """The folder of checkpoints or publications, which has a temporary folder."""
        if self.checkpoints is None:
            raise ShardError("save: this shard has no folder of checkpoints; start it with --checkpoints DIR or a job")
        root = self.checkpoints if consumer == "checkpoints" else self.checkpoints.parent / consumer
        if not PARTIAL.fullmatch(folder) or not (root / folder).is_dir():
            raise ShardError(f"save: {folder}: expected a {consumer[:-1]} being written in {root}")
        return root

    def changes(self, session: str, table_group: str, since: int, step: int, client: str) -> list[RowBlock]:
        """`ServedTableGroup.changes` of a table group, for clients of the session."""
        return self._find_for(client, "changes", session, table_group).changes(since, step)

    def seen_keys(self, session: str, table_group: str, num_bytes: int, client: str) -> SeenKeys:
        """`ServedTableGroup.seen_keys` of a table group, for clients of the session."""
        return self._find_for(client, "seen_keys", session, table_group).seen_keys(num_bytes)

    def acknowledge(self, session: str, table_group: str, consumer: str, version: int, client: str) -> None:
        """`ServedTableGroup.acknowledge` of a table group, for clients of the session."""
        self._find_for(client, "acknowledge", session, table_group).acknowledge(consumer, version)

    def status(self) -> dict[str, Any]:
        """Status as JSON-able values."""
        with self._lock:
            request, groups = self._request, dict(self._served)
            streams = self._members.num_streams
        if request is None:
            return {"session": None}
        return {
            "session": request.session,
            "run": request.run,
            "shard": request.shard,
            "num_trainers": request.num_trainers,
            "streams": streams,
            "table_groups": {
                name: {
                    "applied": group.applied,
                    "rows": group.rows.num_rows,
                    "bytes": group.rows.num_bytes,
                    "tables": group.rows_by_table(),
                    **asdict(group.counts),
                }
                for name, group in groups.items()
            },
        }

    def _check(self, request: OpenRequest, now: OpenRequest | None) -> None:
        """Check that this shard can serve a new session."""
        if now is not None and now.run != request.run and self._members.num_streams:
            raise ShardError(
                f"busy with run {now.run} with {now.num_trainers} trainers; stop that run, or use another shard"
            )
        for name, (spec, _) in request.table_groups.items():
            if self._expected is not None and self._expected.get(name) != spec:
                raise ShardError(f"open: table group {name} differs from the one in this shard's job file")

    def _make_group(self, name: str, request: OpenRequest) -> ServedTableGroup:
        spec, plan = request.table_groups[name]
        rows = make_part(spec, plan, request.shard, self._make_storage)
        if request.checkpoint is not None:
            own = request.shard if spec.budget is None else None
            load_part(rows, self._read_parts(name, request.checkpoint, plan, own), spec, plan, request.shard)
        merger: StepMerger[TrainerUpdate] = StepMerger(
            request.num_trainers, merged=request.merged, applied=request.step
        )
        return ServedTableGroup(name, spec, rows, merger, hold_s=self._hold_s)

    def _read_parts(self, name: str, checkpoint: int, plan: ShardingPlan, own: int | None) -> list[Columns]:
        """The parts of a saved table group, or the state of a group saved by one process.

        Only the `own` part, if the group was saved with the same plan and its rows have to be collected from segments.
        """
        if self.checkpoints is None:
            raise CheckpointError("this shard has no folder of checkpoints; start it with --checkpoints DIR or a job")
        return _read_saved(self.checkpoints / f"{checkpoint:08d}", name, plan, own)

    def _of_session(self, session: str) -> dict[str, ServedTableGroup]:
        if self._request is None:
            raise ShardLost("has no session, because it was started after training")
        if self._request.session != session:
            raise ShardLost(f"serves another session, of run {self._request.run}")
        return self._served

    def _find_for(self, client: str, call: str, session: str, table_group: str) -> ServedTableGroup:
        """A table group, for a call that only clients of the session may make."""
        with self._lock:
            served = self._find(session, table_group)
            self._members.check(client, call)
        return served

    def _find(self, session: str, table_group: str) -> ServedTableGroup:
        groups = self._of_session(session)
        if table_group not in groups:
            raise ShardError(f"table group {table_group!r}: expected one of: {', '.join(groups)}")
        return groups[table_group]


def part_folder(checkpoint: Path, table_group: str, shard: int, num_shards: int) -> Path:
    """Folder of a shard's part of a table group in a checkpoint; under a budget, of one of the partitions."""
    return checkpoint / "tables" / table_group / f"shard-{shard:04d}-of-{num_shards:04d}"


def saved_partition_count(checkpoint: Path, table_group: str) -> int:
    """Number of partitions of a table group that was saved under a budget.

    Raises:
        CheckpointError: It cannot be read.
    """
    states = _read_saved(checkpoint, table_group)
    return partition_count_of(states if len(states) > 1 else separated_columns(states[0]))


def _part_folders(checkpoint: Path, table_group: str, request: OpenRequest) -> list[Path]:
    """Folders of the parts of a shard in a checkpoint: one, or under a budget one for each of its partitions."""
    spec, plan = request.table_groups[table_group]
    if spec.budget is None:
        return [part_folder(checkpoint, table_group, request.shard, plan.num_shards)]
    numbers = plan.partitions_in(request.shard)
    return [part_folder(checkpoint, table_group, number, plan.partition_count) for number in numbers]


def _read_saved(
    checkpoint: Path, table_group: str, plan: ShardingPlan | None = None, own: int | None = None
) -> list[Columns]:
    """The saved parts of a table group, as columns that are read when they are used; or only the `own` part, see
    `Shard._read_parts`."""
    folder = checkpoint / "tables" / table_group
    folders = sorted(path for path in folder.glob("shard-*-of-*") if path.is_dir()) or [folder]
    try:
        parts = [{path.stem: map_array(path) for path in sorted(place.glob("*.npy"))} for place in folders]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: cannot be read: {error}") from error
    if not parts[0]:
        raise CheckpointError(f"{folder}: contains no tables; can the shard access the run's checkpoints?")
    chains, saved_plan = read_chains(checkpoint, table_group)
    if not chains:
        return parts
    segments = SegmentFolder(checkpoint.parent)
    if folders == [folder]:
        return [segments.restored_group(table_group, chains, parts[0])]
    wanted = range(len(parts)) if own is None or plan is None or saved_plan != plan.to_dict() else [own]
    return [segments.restored(table_group, chains[number], parts[number]) for number in wanted]


def _check_same(ours: OpenRequest, theirs: OpenRequest) -> None:
    """Check that a trainer's request agrees with the session's."""
    if ours.checksum() == theirs.checksum():
        return
    key, first, this = _first_difference(ours.training(), theirs.training())
    raise ShardError(f"open: trainers disagree on {key}: the first sent {first:.80}, this one {this:.80}")


def _first_difference(a: Any, b: Any, path: str = "") -> tuple[str, str, str]:
    """Path and values of the first difference, as deep as possible."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = dict.fromkeys([*a, *b])
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        a, b = dict(enumerate(a)), dict(enumerate(b))
        keys = dict.fromkeys(a)
    else:
        return path.removeprefix("."), str(a), str(b)
    key = next(key for key in keys if a.get(key) != b.get(key))
    return _first_difference(a.get(key), b.get(key), f"{path}.{key}")
