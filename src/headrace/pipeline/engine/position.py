"""`Position`: a place in the stream from which everything behind it can be rebuilt; and the saved state that holds it.

A saved state is a small JSON-able dict. It holds no data (`item` and `piece` are its words for the split and the source
batch)::

    {"version": 1,
     "stages": ["source of 40 items", "shuffle 200000 rows seed 7", "batch"],
     "epoch": 0,
     "position": [{"item": 12, "piece": 0},          # of the source: the next source batch to read
                  {"rows": 1312, "index": 3},        # of the shuffle: rows of that batch used already, next block
                  {"rows": 40960, "index": 79}]}     # of the batch stage: rows of that block used already, next batch
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.errors import CheckpointError, VersionMismatch

__all__ = ["STATE_VERSION", "Position", "load_state", "make_state"]

STATE_VERSION = 1


@dataclass(frozen=True, slots=True)
class Position:
    """Where a stream begins.

    Attributes:
        split: First split to read.
        source_batch: Source batches of it to leave out.
        rebatches: For each rebatcher passed, from the source on: rows of its first input to leave out, and the number
            of its next output.
    """

    split: int
    source_batch: int
    rebatches: tuple[tuple[int, int], ...] = ()

    @classmethod
    def start(cls, num_rebatches: int) -> Position:
        """The beginning of a stream behind some rebatchers."""
        return cls(0, 0, ((0, 0),) * num_rebatches)

    def before(self, rebatch: int) -> Position:
        """The same position in the stream in front of a rebatcher, which is the one of that number."""
        return Position(self.split, self.source_batch, self.rebatches[:rebatch])

    def behind(self, used_rows: int, index: int) -> Position:
        """A position behind one more rebatcher, whose next output is `index` and begins with this position's element.

        Args:
            used_rows: Rows of that element that earlier outputs have used.
            index: Number of the next output.
        """
        return Position(self.split, self.source_batch, (*self.rebatches, (used_rows, index)))


def make_state(stages: Sequence[str], epoch: int, position: Position) -> dict[str, Any]:
    """The state as it is saved."""
    rebatches = [{"rows": rows, "index": index} for rows, index in position.rebatches]
    return {
        "version": STATE_VERSION,
        "stages": list(stages),
        "epoch": epoch,
        "position": [{"item": position.split, "piece": position.source_batch}, *rebatches],
    }


def load_state(state: Mapping[str, Any], stages: Sequence[str]) -> tuple[int, Position]:
    """Epoch and position of a saved state.

    Args:
        state: From `make_state`.
        stages: Those of the pipeline that is to continue.

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
        return int(state["epoch"]), Position(int(first["item"]), int(first["piece"]), rebatches)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"pipeline state: not readable: {error!r}") from error
