"""`Traffic`: counts rows and bytes that move, by step, trainer and kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.placement.replay.movement import SHARD, Kind, Move, RowBytes
from headrace.placement.replay.stream import Int8s, Int32s

__all__ = ["Traffic"]

Float64s = npt.NDArray[np.float64]


class Traffic:
    """Rows that moved in a replay. A ring all-reduce of n rows among W trainers counts 2(W-1)/W n rows into each.

    Args:
        num_steps: Number of steps S.
        num_trainers: Number of trainers W.
        row_bytes: Bytes of a row.
        homes: int8 [rows], trainer that holds the shard of each row, to which it has no network; None for none.

    Attributes:
        received: float64 [S + 1, W + 1, kinds, 2], rows into each trainer and, last, the shards; the last axis is
            deferred, critical. The last step is what moves after training.
        sent: The same for rows out of them.
    """

    def __init__(self, num_steps: int, num_trainers: int, row_bytes: RowBytes, homes: Int8s | None = None) -> None:
        self._num_steps = num_steps
        self._num_trainers = num_trainers
        self._homes = homes
        self._bytes = row_bytes.by_kind()
        self.received: Float64s = np.zeros((num_steps + 1, num_trainers + 1, len(Kind), 2))
        self.sent: Float64s = np.zeros_like(self.received)

    def add(self, step: int, move: Move, *, waits: bool) -> None:
        """Count a movement; `waits` says whether the step waits for it."""
        place = step, move.kind, int(waits)
        if move.kind == Kind.ALL_REDUCE:
            share = 2 * (self._num_trainers - 1) / self._num_trainers * len(move.rows)
            self._count(place, slice(self._num_trainers), slice(self._num_trainers), share)
        elif self._homes is None or SHARD not in (move.source, move.target):
            self._count(place, move.source, move.target, len(move.rows))
        else:
            self._add_by_home(place, move, self._homes[move.rows])

    def _add_by_home(self, place: tuple[int, int, int], move: Move, homes: Int32s | Int8s) -> None:
        trainer = move.target if move.source == SHARD else move.source
        for home, count in enumerate(np.bincount(homes, minlength=self._num_trainers).tolist()):
            if home != trainer:
                source, target = (home, trainer) if move.source == SHARD else (trainer, home)
                self._count(place, source, target, count)

    def _count(self, place: tuple[int, int, int], source: int | slice, target: int | slice, num_rows: float) -> None:
        step, kind, waits = place
        self.sent[step, source, kind, waits] += num_rows
        self.received[step, target, kind, waits] += num_rows

    def rows(self, *kinds: Kind) -> float:
        """Number of rows of some kinds (none: all), without those that move after training."""
        return float(self.received[:-1, :, list(kinds or Kind)].sum())

    def bytes(self, *kinds: Kind) -> float:
        """Number of bytes of some kinds (none: all), without those that move after training."""
        chosen = list(kinds or Kind)
        return float((self.received[:-1, :, chosen].sum(axis=(0, 1, 3)) * self._bytes[chosen]).sum())

    def critical_bytes(self) -> float:
        """Number of bytes that a step waits for."""
        return float((self.received[:-1, :, :, 1].sum(axis=(0, 1)) * self._bytes).sum())

    def final_bytes(self) -> float:
        """Number of bytes that move after training."""
        return float((self.received[-1].sum(axis=(0, 2)) * self._bytes).sum())

    def final_rows(self) -> float:
        """Number of rows that move after training."""
        return float(self.received[-1].sum())

    def link_bytes(self) -> float:
        """Bytes into the busiest trainer, without those that move after training."""
        by_trainer = (self.received[:-1, :-1].sum(axis=(0, 3)) * self._bytes).sum(axis=1)
        return float(by_trainer.max())

    def bytes_by_step(self) -> Float64s:
        """float64 [S], bytes that move in each step."""
        by_step: Float64s = (self.received[:-1].sum(axis=(1, 3)) * self._bytes).sum(axis=1)
        return by_step

    def to_dict(self) -> dict[str, Any]:
        """Plain values per step for JSON: rows and bytes by kind, critical bytes, bytes into each trainer."""
        rows = self.received[:-1].sum(axis=(0, 1, 3)) / self._num_steps
        into = (self.received[:-1].sum(axis=(0, 3)) * self._bytes).sum(axis=1) / self._num_steps
        out_of = (self.sent[:-1].sum(axis=(0, 3)) * self._bytes).sum(axis=1) / self._num_steps
        kinds = [kind.name.lower() for kind in Kind]
        return {
            "rows": dict(zip(kinds, rows.tolist(), strict=True)),
            "bytes": dict(zip(kinds, (rows * self._bytes).tolist(), strict=True)),
            "critical_bytes": self.critical_bytes() / self._num_steps,
            "bytes_into_trainers": into[:-1].tolist(),
            "bytes_into_shards": float(into[-1]),
            "bytes_out_of_trainers": out_of[:-1].tolist(),
            "bytes_out_of_shards": float(out_of[-1]),
            "link_bytes": self.link_bytes() / self._num_steps,
            "bytes_by_step": self.bytes_by_step().tolist(),
        }
