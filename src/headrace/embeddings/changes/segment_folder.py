"""`SegmentFolder`: the files of delta checkpoints, which several checkpoints of a run share."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from headrace.embeddings.changes.chains import Chain, Chains
from headrace.embeddings.changes.restoring import restored_state
from headrace.embeddings.changes.segments import Segment
from headrace.embeddings.tables.partitions import joined_columns, separated_columns
from headrace.embeddings.tables.parts import numbered
from headrace.embeddings.tables.state import Columns

__all__ = ["RestoredParts", "SegmentFolder", "segments_until"]

NAME = "segments"


class SegmentFolder:
    """The segments of a run: `segments/<table group>/<first checkpoint>-<last checkpoint>-<random>.rows`.

    Names are never used again, so a checkpoint that was moved aside keeps its segments apart from those of the one that
    replaces it. Thread-safe.

    Args:
        checkpoints: Checkpoint folder of the run.
    """

    def __init__(self, checkpoints: Path) -> None:
        self.path = checkpoints / NAME
        self._lock = threading.Lock()
        self._unused: set[str] = set()  # files that no checkpoint names yet

    def place(self, table_group: str) -> Path:
        """Folder of the segments of a table group."""
        return self.path / table_group

    def new_name(self, first: int, last: int, part: str = "") -> str:
        """A name for a new segment, which is kept until `forget_name` even if no checkpoint names it.

        Args:
            first, last: Numbers of its checkpoints.
            part: A shard's part, such as `shard-0001-of-0004`.
        """
        name = f"{first:08d}-{last:08d}-{part}{'-' if part else ''}{uuid.uuid4().hex[:8]}.rows"
        with self._lock:
            self._unused.add(name)
        return name

    def reserve_name(self, name: str) -> None:
        """Keep a segment from elsewhere until `forget_name`, even if nothing names it yet."""
        with self._lock:
            self._unused.add(name)

    def forget_name(self, name: str) -> None:
        """Let `delete_unused` delete a file if no checkpoint names it."""
        with self._lock:
            self._unused.discard(name)

    def restored(self, table_group: str, chain: Chain, whole: Columns) -> Columns:
        """The columns of a table group, or of a shard's part of it, after the checkpoint of a chain.

        Raises:
            TornCheckpoint: A segment is damaged.
        """
        return restored_state(self.place(table_group), chain, whole)

    def restored_group(self, table_group: str, chains: Sequence[Chain], whole: Columns) -> Columns:
        """The state of a table group that one process saved, from the chain of each partition.

        Raises:
            TornCheckpoint: A segment is damaged.
        """
        wholes = separated_columns(whole)
        states = [
            numbered(self.restored(table_group, chain, of_part)) for chain, of_part in zip(chains, wholes, strict=True)
        ]
        return states[0] if wholes == [whole] else joined_columns(states)

    def check(self, table_group: str, chain: Chain) -> None:
        """Check all segments of a chain.

        Raises:
            TornCheckpoint: A segment is damaged; the text has the place.
        """
        for entry in chain:
            Segment(self.place(table_group), entry).check()

    def delete_unused(self, chains: Sequence[Chains]) -> None:
        """Delete segments that are in no chain of any checkpoint; none may be completed meanwhile."""
        used = {entry.name for each in chains for parts in each.values() for chain in parts for entry in chain}
        paths = [path for path in self.path.glob("*/*") if path.name not in used]  # with names that begin with a dot
        with self._lock:  # after the files were listed: a name is taken before its file is created
            unused = tuple(self._unused)
        for path in paths:
            if not path.name.removeprefix(".").startswith(unused):
                path.unlink(missing_ok=True)


def segments_until(checkpoints: Path, number: int) -> list[Path]:
    """The segments whose last checkpoint is one of this number, so that no earlier checkpoint has them."""
    return sorted((checkpoints / NAME).glob(f"*/[0-9]*-{number:08d}-*.rows"))


class RestoredParts(Mapping[str, list[Columns]]):
    """Shards' parts of table groups, restored when they are asked for: all of them may not fit into one process."""

    def __init__(self, folder: SegmentFolder, chains: Chains, whole: Mapping[str, list[Columns]]) -> None:
        self._folder, self._chains, self._whole = folder, chains, whole

    def __getitem__(self, name: str) -> list[Columns]:
        pairs = zip(self._chains[name], self._whole[name], strict=True)
        return [self._folder.restored(name, chain, whole) for chain, whole in pairs]

    def __iter__(self) -> Iterator[str]:
        return iter(self._whole)

    def __len__(self) -> int:
        return len(self._whole)
