"""The state of a pipeline as a small JSON-able dict, and back.

A state holds no data, only the position from which the next batch can be rebuilt::

    {"version": 1,
     "stages": ["source of 40 items", "shuffle 200000 rows seed 7", "batch"],
     "epoch": 0,
     "position": [{"item": 12, "piece": 0},          # of the source: the next piece to read
                  {"rows": 1312, "index": 3},        # of the shuffle: rows of that piece used already, next block
                  {"rows": 40960, "index": 79}]}     # of the batch stage: rows of that block used already, next batch
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.errors import CheckpointError, VersionMismatch
from headrace.pipeline.engine.element import Token

__all__ = ["STATE_VERSION", "Position", "load_state", "make_state"]

STATE_VERSION = 1


@dataclass(frozen=True)
class Position:
    """Where a stream begins.

    Attributes:
        item: First item to read.
        piece: Pieces of it to leave out.
        cuts: For each cutter, from the source on: rows of its first input to leave out, number of its next output.
    """

    item: int
    piece: int
    cuts: tuple[tuple[int, int], ...]

    @classmethod
    def start(cls, num_cutters: int) -> Position:
        """The beginning."""
        return cls(0, 0, ((0, 0),) * num_cutters)

    @classmethod
    def from_token(cls, token: Token, num_cutters: int) -> Position:
        """The position that the token behind the last of some cutters stands for."""
        cuts: list[tuple[int, int]] = []
        for _ in range(num_cutters):
            token, rows, index = token
            cuts.append((rows, index))
        item, piece = token
        return cls(item, piece, tuple(reversed(cuts)))

    def to_token(self, num_cutters: int) -> Token:
        """The token behind the first `num_cutters` cutters; undoes `from_token`."""
        token: Token = (self.item, self.piece)
        for rows, index in self.cuts[:num_cutters]:
            token = (token, rows, index)
        return token


def make_state(stages: Sequence[str], epoch: int, position: Position) -> dict[str, Any]:
    """The state as it is saved."""
    cuts = [{"rows": rows, "index": index} for rows, index in position.cuts]
    return {
        "version": STATE_VERSION,
        "stages": list(stages),
        "epoch": epoch,
        "position": [{"item": position.item, "piece": position.piece}, *cuts],
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
        cuts = tuple((int(cut["rows"]), int(cut["index"])) for cut in rest)
        return int(state["epoch"]), Position(int(first["item"]), int(first["piece"]), cuts)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"pipeline state: not readable: {error!r}") from error
