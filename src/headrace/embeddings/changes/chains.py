"""Chains of segments: which segments a checkpoint consists of, and which of them to merge."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from headrace.embeddings.changes.segments import SegmentEntry
from headrace.errors import CheckpointError
from headrace.manifest import MANIFEST

__all__ = [
    "SEGMENT_NAME",
    "Chain",
    "Chains",
    "Merge",
    "chains_of",
    "chains_to_json",
    "plan_merge",
    "read_chains",
    "replaced",
]

Chain = tuple[SegmentEntry, ...]
Chains = dict[str, tuple[Chain, ...]]
"""For each table group, the chain of the process that trains it, or one for each shard; oldest segments first."""

_CHAINS: TypeAdapter[Chains] = TypeAdapter(Chains)

FANOUT = 4
"""Segments of a similar number of checkpoints that are merged into one. A row is rewritten once per level, of which n
checkpoints have log4(n)."""
BASE_BYTES = 0.5
"""Bytes of the segments after a base, as a part of its bytes, at which all become a new base: a restore then reads at
most half more than a base, and merges write at most three bytes per byte of a delta for it."""

SEGMENT_NAME = r"[0-9]{8,}-[0-9]{8,}(-shard-[0-9]{4,}-of-[0-9]{4,})?-[0-9a-f]{8}\.rows"
"""Name of a segment, as a regular expression."""


@dataclass(frozen=True)
class Merge:
    """Segments `first` to `last` - 1 of a chain become one, because of a reason."""

    first: int
    last: int
    reason: str


def plan_merge(chain: Sequence[SegmentEntry], base_every: int | Literal["auto"] = "auto") -> Merge | None:
    """The next segments of a chain to merge; None if there are none."""
    base, deltas = chain[0], chain[1:]
    if not deltas:
        return None
    num_bytes = sum(entry.bytes for entry in deltas)
    if base_every == "auto" and num_bytes >= BASE_BYTES * base.bytes:
        return Merge(0, len(chain), f"{num_bytes:,} bytes after a base of {base.bytes:,}")
    num_checkpoints = deltas[-1].last - base.last
    if base_every != "auto" and num_checkpoints >= base_every:
        return Merge(0, len(chain), f"{num_checkpoints} checkpoints after a base")
    first = 1
    for _, run in groupby(deltas, key=_level):  # whole runs, so that none of a lower level stays before a higher one
        length = len(list(run))
        if length >= FANOUT:
            return Merge(first, first + length, f"{length} segments of a similar number of checkpoints")
        first += length
    return None


def replaced(chain: Chain, merged: Sequence[SegmentEntry], by: SegmentEntry) -> Chain:
    """The chain with adjacent segments replaced by the one into which they were merged, if it has all of them."""
    for first in range(len(chain) - len(merged) + 1):
        if chain[first : first + len(merged)] == tuple(merged):
            return (*chain[:first], by, *chain[first + len(merged) :])
    return chain


def chains_to_json(chains: Mapping[str, Sequence[Chain]]) -> dict[str, Any]:
    """Chains as values of a manifest."""
    return {name: [[asdict(entry) for entry in chain] for chain in parts] for name, parts in chains.items()}


def chains_of(values: Any) -> Chains:
    """Inverse of `chains_to_json`.

    Raises:
        ValueError: The values are not chains; the text has the first mistake.
    """
    try:
        chains = _CHAINS.validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"chains.{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    for name, parts in chains.items():
        for chain in parts:
            if not chain or not chain[0].is_base or any(entry.is_base for entry in chain[1:]):
                raise ValueError(f"chains.{name}: expected a base and the segments after it")
            wrong = [entry.name for entry in chain if not re.fullmatch(SEGMENT_NAME, entry.name)]
            if wrong or "/" in name or name in ("", ".", ".."):
                raise ValueError(f"chains.{name}: given {wrong or name}, expected names of files")
    return chains


def read_chains(checkpoint: Path, table_group: str) -> tuple[tuple[Chain, ...], Any]:
    """The chains of a table group in a checkpoint that was checked, none if it has all rows itself; and its plan.

    Raises:
        CheckpointError: The manifest cannot be read.
    """
    path = checkpoint / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return chains_of(values.get("chains", {})).get(table_group, ()), values.get("plans", {}).get(table_group)
    except FileNotFoundError:
        return (), None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error


def _level(entry: SegmentEntry) -> int:
    number, level = entry.last - entry.first + 1, 0
    while number >= FANOUT:
        number, level = number // FANOUT, level + 1
    return level
