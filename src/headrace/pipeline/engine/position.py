"""`Position`: a position in a stream from which the rest can be recomputed; and its saved state.

A saved state is a small JSON-able dict without data (its keys `item` and `piece` are the split and the source batch)::

    {"version": 1,
     "stages": ["source of 40 items", "shuffle 200000 rows seed 7", "batch"],
     "epoch": 0,
     "position": [{"item": 12, "piece": 0},          # of the source: the next source batch to read
                  {"rows": 1312, "index": 3},        # of the shuffle: rows of that batch used already, next block
                  {"rows": 40960, "index": 79}],     # of the batch stage: rows of that block used already, next batch
     "segment": 2}           # number of the source; omitted for the first
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.errors import CheckpointError, VersionMismatch

__all__ = ["STATE_VERSION", "Position", "in_first_segment", "load_state", "make_state", "saved_segment"]

STATE_VERSION = 1


@dataclass(frozen=True, slots=True)
class Position:
    """The start of a stream.

    Attributes:
        split: First split to read.
        source_batch: Number of its source batches to skip.
        rebatches: For each rebatcher, from the source on: rows of its first input to skip, and the number of its next
            output.
        segment: Number of the source, from 0.
    """

    split: int
    source_batch: int
    rebatches: tuple[tuple[int, int], ...] = ()
    segment: int = 0

    @classmethod
    def start(cls, num_rebatches: int, segment: int = 0) -> Position:
        """The start of a segment after `num_rebatches` rebatchers."""
        return cls(0, 0, ((0, 0),) * num_rebatches, segment)

    def before(self, rebatch: int) -> Position:
        """The same position in the input stream of rebatcher number `rebatch`."""
        return Position(self.split, self.source_batch, self.rebatches[:rebatch], self.segment)

    def behind(self, used_rows: int, index: int) -> Position:
        """The position after one more rebatcher, whose next output is `index` and starts in this position's element.

        Args:
            used_rows: Number of rows of that element used by earlier outputs.
            index: Number of the next output.
        """
        return Position(self.split, self.source_batch, (*self.rebatches, (used_rows, index)), self.segment)


def make_state(stages: Sequence[str], epoch: int, position: Position) -> dict[str, Any]:
    """Make a saved state."""
    rebatches = [{"rows": rows, "index": index} for rows, index in position.rebatches]
    state = {
        "version": STATE_VERSION,
        "stages": list(stages),
        "epoch": epoch,
        "position": [{"item": position.split, "piece": position.source_batch}, *rebatches],
    }
    return {**state, "segment": position.segment} if position.segment else state


def in_first_segment(state: Mapping[str, Any]) -> dict[str, Any]:
    """The same position for a pipeline whose first source is that of the state's segment."""
    return {key: value for key, value in state.items() if key != "segment"}


def saved_segment(state: Mapping[str, Any], num_segments: int) -> int:
    """The segment of a saved state.

    Raises:
        CheckpointError: The pipeline has no such segment.
    """
    segment = state.get("segment", 0) if isinstance(state, Mapping) else 0
    if not isinstance(segment, int) or not 0 <= segment < num_segments:
        raise CheckpointError(f"pipeline state: of segment {segment!r}, but the pipeline has {num_segments} sources")
    return segment


def load_state(state: Mapping[str, Any], stages: Sequence[str]) -> tuple[int, Position]:
    """Load epoch and position from a saved state.

    Args:
        state: A state from `make_state`.
        stages: Stages of the pipeline, in the segment of the state.

    Raises:
        VersionMismatch: The state has a different format version.
        CheckpointError: The state was saved by a pipeline with other stages (the text lists both), or is not a state.
    """
    version = state.get("version") if isinstance(state, Mapping) else None
    if version != STATE_VERSION:
        raise VersionMismatch(f"pipeline state: given version {version!r}, expected {STATE_VERSION}")
    if list(state.get("stages", ())) != list(stages):
        raise CheckpointError(
            f"pipeline state: saved by the pipeline [{' -> '.join(map(str, state.get('stages', ())))}], "
            f"this one is [{' -> '.join(stages)}]"
        )
    try:
        first, *rest = state["position"]
        rebatches = tuple((int(part["rows"]), int(part["index"])) for part in rest)
        position = Position(int(first["item"]), int(first["piece"]), rebatches, int(state.get("segment", 0)))
        return int(state["epoch"]), position
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"pipeline state: not readable: {error!r}") from error
