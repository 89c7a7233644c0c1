"""What readers of a publication have that a resumed run does not: changes of steps that it forgot when it was killed.

Training resumes from a checkpoint, and versions that were cut after it have rows that never were::

    steps        ----P----C----Q----N     P, Q, N: versions; C: the checkpoint; killed after N
    a resume               C----R         R = N, with the keys of P to N as they are now, and what changed since C

A key that differs between N and the tables at C was changed after P, so it is in the segments from P to N: changes
after C are, and those between P and C are in Q, if the same process cut it. Keys that changed and changed back are
there too; they cost bytes only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.embeddings.changes.delta import Columns
from headrace.embeddings.changes.key_log import unique_keys
from headrace.embeddings.changes.open_blocks import MappedBlocks
from headrace.embeddings.changes.segments import Segment
from headrace.errors import CheckpointError
from headrace.publishing.publications import Publication, PublicationFolder

__all__ = ["Cursor", "forgotten_keys"]


@dataclass(frozen=True)
class Cursor:
    """Where the publications of a run were when a checkpoint was made.

    Attributes:
        lineage: Identifies the publications.
        session: Identifies the process that made the checkpoint.
        version: The last version that had been cut.
    """

    lineage: str
    session: str
    version: int


def forgotten_keys(
    folder: PublicationFolder, newest: Publication, cursor: Cursor
) -> tuple[dict[str, list[Columns]] | None, str]:
    """The keys in which the newest version may differ from the tables of a checkpoint.

    Args:
        folder: The publications.
        newest: The newest version.
        cursor: Where they were when the checkpoint was made.

    Returns:
        For each table group and part, `tables` int32 [K] and `ids` int64 [K], unique and ascending; or None, and why
        they are not known.

    Raises:
        TornCheckpoint: A segment is damaged.
    """
    if cursor.lineage != newest.lineage:
        return None, "the checkpoint is of other versions"
    if any(header.retention is not None for parts in newest.tables.values() for header in parts):
        return None, "its tables have a budget"  # whose shared rows follow from no key
    after = [version for version in folder.versions() if version > cursor.version]
    try:
        if not after or folder.load(after[0], check_files=False).session != cursor.session:
            return None, "no version of the same process was cut after the checkpoint"
    except CheckpointError as error:
        return None, str(error)
    needed = folder.needed(newest, cursor.version)
    if needed is None:
        return None, "its segments since the checkpoint were merged with earlier ones"
    return {
        name: [_keys_of([Segment(folder.segments.place(name), entry) for entry in chain]) for chain in parts]
        for name, parts in needed.items()
    }, ""


def _keys_of(segments: Sequence[Segment]) -> Columns:
    """The keys of all rows that segments set or remove."""
    blocks = MappedBlocks()
    tables, ids = unique_keys(
        (block.tables, block.ids)
        for segment in segments
        for section in ("removed", "rows")
        for block in blocks.open(segment, section)
    )
    return {"tables": tables, "ids": ids}
