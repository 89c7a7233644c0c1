"""`Position`: a place in the stream from which everything behind it can be rebuilt; and the saved state that holds it.

A saved state is a small JSON-able dict. It holds no data (`item` and `piece` are its words for the split and the source
batch)::

    {"version": 1,
     "stages": ["source of 40 items", "shuffle 200000 rows seed 7", "batch"],
     "epoch": 0,
     "position": [{"item": 12, "piece": 0},          # of the source: the next source batch to read
                  {"rows": 1312, "index": 3},        # of the shuffle: rows of that batch used already, next block
                  {"rows": 40960, "index": 79}],     # of the batch stage: rows of that block used already, next batch
     "segment": 2}                                   # the source they are in; left out for the first
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
    """Where a stream begins.

    Attributes:
        split: First split to read.
        source_batch: Source batches of it to leave out.
        rebatches: For each rebatcher passed, from the source on: rows of its first input to leave out, and the number
            of its next output.
        segment: The source they are in, counted from 0.
    """

    split: int
    source_batch: int
    rebatches: tuple[tuple[int, int], ...] = ()
    segment: int = 0

    @classmethod
    def start(cls, num_rebatches: int, segment: int = 0) -> Position:
        """The beginning of a segment behind some rebatchers."""
        return cls(0, 0, ((0, 0),) * num_rebatches, segment)

    def before(self, rebatch: int) -> Position:
        """The same position in the stream in front of a rebatcher, which is the one of that number."""
        return Position(self.split, self.source_batch, self.rebatches[:rebatch], self.segment)

    def behind(self, used_rows: int, index: int) -> Position:
        """A position behind one more rebatcher, whose next output is `index` and begins with this position's element.

        Args:
            used_rows: Rows of that element that earlier outputs have used.
            index: Number of the next output.
        """
        return Position(self.split, self.source_batch, (*self.rebatches, (used_rows, index)), self.segment)


def make_state(stages: Sequence[str], epoch: int, position: Position) -> dict[str, Any]:
    """The state as it is saved."""
    rebatches = [{"rows": rows, "index": index} for rows, index in position.rebatches]
    state = {
        "version": STATE_VERSION,
        "stages": list(stages),
        "epoch": epoch,
        "position": [{"item": position.split, "piece": position.source_batch}, *rebatches],
    }
    return {**state, "segment": position.segment} if position.segment else state


def in_first_segment(state: Mapping[str, Any]) -> dict[str, Any]:
    """The same place for a pipeline whose first source is that of the state's segment."""
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
    """Epoch and position of a saved state.

    Args:
        state: From `make_state`.
        stages: Those of the pipeline that is to continue, in the segment of the state.

    Raises:
        VersionMismatch: Saved by another version of the format.
        CheckpointError: Saved by a pipeline of other stages (both are printed), or not a state.
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
