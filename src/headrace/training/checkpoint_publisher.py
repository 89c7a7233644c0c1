"""`CheckpointPublisher`: publishes the checkpoints of a run that does not publish while it trains."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headrace.config import read_yaml
from headrace.embeddings.changes.delta import Columns, Delta
from headrace.embeddings.changes.merging import merged_blocks
from headrace.embeddings.changes.segments import Segment
from headrace.embeddings.tables.partitions import separated_columns
from headrace.embeddings.tables.state import TableGroupHeader, upgraded
from headrace.errors import CheckpointError, HeadraceError
from headrace.manifest import MANIFEST
from headrace.publishing.config import PublishConfig
from headrace.publishing.needed_segments import segments_since
from headrace.publishing.publications import Publication, PublicationFolder
from headrace.publishing.writer import Cut, PublicationWriter
from headrace.training.checkpoint import CheckpointFolder, Snapshot, read_arrays
from headrace.training.publisher import fingerprint
from headrace.training.run_folder import RunFolder

__all__ = ["CheckpointPublisher", "publishes_itself"]

KEYS = ("tables", "ids")
NEEDED = (*KEYS, "weights")
FIXED_IDS = "policy frequency"
"""Retention whose ids have rows before they are trained, which checkpoints leave out."""


def publishes_itself(run: Path) -> bool:
    """Whether a run publishes while it trains, so that its publications only have to be served."""
    path = RunFolder(run).path / "config.yaml"
    if not path.is_file():
        return False
    match read_yaml(path):
        case {"training": {"publish": dict()}}:
            return True
    return False


@dataclass(frozen=True)
class _State:
    """A checkpoint, without its rows.

    Attributes:
        number: Its number.
        fingerprint: Identifies its state.
        snapshot: Its contents, with the rows of a whole checkpoint.
        parts: For each table group, the columns of each part, with the rows of a whole checkpoint.
        headers: The header of each part.
        cut_at: When it was complete, in seconds since 1970.
    """

    number: int
    fingerprint: str
    snapshot: Snapshot
    parts: dict[str, list[Columns]]
    headers: dict[str, list[TableGroupHeader]]
    cut_at: float


class CheckpointPublisher:
    """Cuts a publication from each complete checkpoint of a run, or from the newest ones if it cannot keep up.

    What changed between two delta checkpoints is in their segments. Of whole checkpoints, and where a base has been
    merged since, all rows are read, and those with a newer version are taken. The deltas of a version are in memory
    while it is written.

    Args:
        run: The run's folder.
        config: How to publish; `every_s` has no meaning here.

    Raises:
        HeadraceError: Another process publishes this run's checkpoints.
        CheckpointError: The folder of publications cannot be used.
    """

    def __init__(self, run: Path, config: PublishConfig) -> None:
        self._run = RunFolder(run)
        self._checkpoints = CheckpointFolder(self._run.checkpoints)
        self.folder = PublicationFolder(self._run.publications, keep=config.keep)
        self._lock = _locked(self.folder.path)
        self._writer = PublicationWriter(self.folder, config)
        self._published: _State | None = None
        self._seen: tuple[int, int] | None = None
        self._follow()

    def step(self) -> tuple[Publication | None, list[str]]:
        """Publish the newest checkpoint, if that was not done.

        Returns:
            The version, if there is a new one; and lines about failures.
        """
        lines: list[str] = []
        version = None
        newest = max(self._checkpoints.numbers(), default=0)
        if newest and self._is_news(newest):
            try:
                state = self._read(newest)
                if self._published is None or state.fingerprint != self._published.fingerprint:
                    version = self._publish(state)
            except CheckpointError as error:  # perhaps it was deleted meanwhile, as a newer one is complete
                lines.append(f"checkpoint {newest} was not published: {error}")
        lines += [line for is_for_user, line in self._writer.take_messages() if is_for_user]
        return version, lines

    def close(self) -> None:
        """End the threads, and let others publish."""
        self._writer.close()
        os.close(self._lock)

    def _is_news(self, number: int) -> bool:
        """Whether the newest checkpoint is another one than when this was last called."""
        try:
            seen = number, (self._checkpoints.path / f"{number:08d}").stat().st_ino
        except OSError:
            return False
        before, self._seen = self._seen, seen
        return seen != before

    def _follow(self) -> None:
        """Continue the newest version, if its checkpoint is still there."""
        newest = self.folder.newest()
        wanted = None if newest is None else newest.checkpoint
        for number in reversed(self._checkpoints.numbers()):
            with suppress(CheckpointError):
                if wanted is not None and self._fingerprint(number) == wanted:
                    state = self._read(number)
                    counts = {name: len(parts) for name, parts in state.parts.items()}
                    if self._writer.follow(wanted, counts, state.snapshot.plans) is not None:
                        self._published = state
                    return
        self._writer.follow(None, {})

    def _fingerprint(self, number: int) -> str:
        manifest, _ = self._checkpoints.read_manifest(number)
        return fingerprint(manifest.content["state"])

    def _read(self, number: int) -> _State:
        """Read a checkpoint, without the rows in segments.

        Raises:
            CheckpointError: It cannot be read.
        """
        manifest, chains = self._checkpoints.read_manifest(number)
        place = self._checkpoints.path / f"{number:08d}"
        manifest.check_files(place)
        snapshot = read_arrays(place, manifest.files, number, manifest.content["state"])
        parts = {name: separated_columns(upgraded(columns)) for name, columns in snapshot.columns.items()}
        parts |= {name: [upgraded(part) for part in each] for name, each in snapshot.parts.items()}
        headers = {name: [TableGroupHeader.read(part) for part in each] for name, each in parts.items()}
        for name, of_group in headers.items():
            if any(header.retention is not None and FIXED_IDS in header.retention for header in of_group):
                raise CheckpointError(f"{name}: {FIXED_IDS} can only be published while training: training.publish")
        about = Snapshot(
            number, snapshot.state, snapshot.arrays, chains=chains, plans=manifest.content.get("plans", {})
        )
        try:
            cut_at = min(time.time(), (place / MANIFEST).stat().st_mtime)
        except OSError as error:
            raise CheckpointError(f"{place}: is gone") from error
        return _State(number, fingerprint(snapshot.state), about, parts, headers, cut_at)

    def _publish(self, state: _State) -> Publication | None:
        before = self._published if self._continues(state) else None
        if before is None:
            self._writer.start_anew()
        deltas = {
            name: [self._delta(state, before, name, part) for part in range(len(parts))]
            for name, parts in state.parts.items()
        }
        job = (self._run.path / "config.yaml").read_text(encoding="utf-8")
        cut = Cut(
            state.snapshot.state["step"],
            state.snapshot.arrays["dense"],
            job,
            state.fingerprint,
            state.cut_at,
            divisions=state.snapshot.plans,
        )
        written = self._writer.num_written
        self._writer.start(cut, deltas)
        self._writer.settle()
        if self._writer.num_written == written:
            self._seen = None  # try again
            return None
        self._published = state
        return self.folder.newest()

    def _continues(self, state: _State) -> bool:
        """Whether a checkpoint follows the one that was published last, which must still be there to know."""
        before = self._published
        if before is None or state.number <= before.number:
            return False
        try:
            is_there = self._fingerprint(before.number) == before.fingerprint
        except CheckpointError:
            return False
        return is_there and _division_of(before) == _division_of(state)

    def _delta(self, state: _State, before: _State | None, name: str, part: int) -> Delta:
        header, chains = state.headers[name][part], state.snapshot.chains.get(name)
        place = self._checkpoints.segments.place(name)
        after = None
        if before is not None and chains is not None:
            after = segments_since(chains[part], before.number, lambda _: None)
        if after is not None and chains is not None:
            segments = [Segment(place, entry) for entry in after]
            like = Segment(place, chains[part][0]).empty("rows")
            removed = _gathered(merged_blocks(segments, "removed"), KEYS, like)
            rows = _gathered(merged_blocks(segments, "rows"), NEEDED, like)
        else:  # a whole checkpoint, or one whose base has been merged since
            if chains is None:
                rows = {each: np.asarray(state.parts[name][part][each]) for each in (*NEEDED, "version")}
            else:
                segments = [Segment(place, entry) for entry in chains[part]]
                rows = _gathered(merged_blocks(segments, "rows"), (*NEEDED, "version"), segments[0].empty("rows"))
            removed = {each: rows[each][:0] for each in KEYS}
            if before is not None:
                removed = self._removed(name, part, rows)
                changed = np.flatnonzero(rows["version"] > before.headers[name][part].version)
                rows = {each: column[changed] for each, column in rows.items()}
            del rows["version"]
        nobody: Columns = {each: removed[each][:0] for each in KEYS}
        since = 0 if before is None else before.headers[name][part].version
        return Delta(since, header.version, removed, rows, nobody, {"header": header.to_column()})

    def _removed(self, name: str, part: int, rows: Columns) -> Columns:
        """The keys of the newest version that are not among those of some rows."""
        newest = self.folder.newest()
        assert newest is not None
        segments = [Segment(self.folder.segments.place(name), entry) for entry in newest.chains[name][part]]
        known = _gathered(merged_blocks(segments, "rows"), KEYS, segments[0].empty("rows"))
        gone = ~np.isin(_as_pairs(known), _as_pairs(rows))
        return {each: column[gone] for each, column in known.items()}


def _division_of(state: _State) -> tuple[Any, ...]:
    """What must not change from one version to the next: tables, their numbers, and how keys are divided."""
    tables = {
        name: [(h.tables, h.partition and h.partition["count"]) for h in each] for name, each in state.headers.items()
    }
    return json.dumps(tables, sort_keys=True), json.dumps(state.snapshot.plans, sort_keys=True)


def _as_pairs(columns: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    keys = np.empty(len(columns["ids"]), dtype=[("table", np.int64), ("id", np.int64)])
    keys["table"], keys["id"] = columns["tables"], columns["ids"]
    return keys


def _gathered(blocks: Iterable[Columns], names: Sequence[str], like: Columns) -> Columns:
    """Some columns of all blocks, of the types of others."""
    found: list[Columns] = [{name: block[name] for name in names} for block in blocks]
    return {name: np.concatenate([like[name][:0], *(block[name] for block in found)]) for name in names}


def _locked(folder: Path) -> int:
    """Make this process the only one that publishes into a folder; returns a file descriptor."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise HeadraceError(f"{folder}: another process publishes this run's checkpoints") from None
    return lock
