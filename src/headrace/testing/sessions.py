"""`SessionSource`: rows of sessions, with plain columns or group columns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.logs import Schema
from headrace.logs.groups import expand, group_array, group_name
from headrace.logs.source import ROW_ID, SourceBatch, make_row_id

__all__ = ["SESSION_SCHEMA", "SessionSource", "has_even_sum"]

SESSION_SCHEMA = Schema.from_dict(
    {
        "labels": [{"name": "click", "allowed": [0, 1]}],
        "dense": ["age", "price"],
        "ids": ["user", "item"],
        "id_lists": ["history"],
        "session_id": "session",
    },
    where="SessionSource",
)

_HISTORY = 8


@dataclass(frozen=True)
class SessionSource:
    """Adjacent sessions of 1 to 9 rows; `age` and `user` are constant, `history` shifts with every third row.

    `click` depends on whether the item is close to the user's, so there is something to learn.

    Attributes:
        num_splits: Number of splits, with two batches each.
        sessions_per_batch: Sessions per batch.
        nested: Whether repeated features are in two group columns: age, user and session; history.
        seed: Random seed.
    """

    num_splits: int = 3
    sessions_per_batch: int = 10
    nested: bool = False
    seed: int = 0

    def __len__(self) -> int:
        return self.num_splits

    def read(self, split: int) -> Iterator[SourceBatch]:
        """Yield the two batches of a split."""
        first_row = 0
        for number in range(2):
            rows = self._rows(split, number, first_row)
            first_row += rows.num_rows
            yield SourceBatch(rows if self.nested else expand(rows), rows.num_rows)

    def describe(self, split: int) -> str:
        """The number of the split."""
        return f"sessions {split}"

    def _rows(self, split: int, number: int, first_row: int) -> pa.RecordBatch:
        rng = np.random.default_rng((self.seed, split, number))
        sizes = rng.integers(1, 10, self.sessions_per_batch)
        session = np.repeat(np.arange(self.sessions_per_batch, dtype=np.int32), sizes)
        within = np.arange(len(session)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        ends = np.cumsum((sizes + 2) // 3)  # distinct histories per session
        version = (ends - (sizes + 2) // 3)[session] + within // 3
        user = rng.integers(0, 50, self.sessions_per_batch)
        shown = rng.integers(0, 50, len(session))
        rate = 1 / (1 + np.exp(np.abs(shown - user[session]) / 8.0 - 2))
        features = {
            "age": pa.array(rng.normal(size=self.sessions_per_batch), pa.float32()),
            "user": pa.array(user),
            "session": pa.array(1000 * split + 100 * number + np.arange(self.sessions_per_batch)),
        }
        row_ids = [make_row_id(split, first_row + row) for row in range(len(session))]
        return pa.record_batch(
            {
                group_name(0): group_array(features, session),
                group_name(1): group_array({"history": self._histories(rng, sizes)}, version.astype(np.int32)),
                "item": pa.array(shown),
                "price": pa.array(rng.normal(size=len(session)), pa.float32()),
                "click": pa.array((rng.random(len(session)) < rate).astype(np.float32)),
                ROW_ID: pa.array(row_ids, pa.int64()),
            }
        )

    def _histories(self, rng: np.random.Generator, sizes: npt.NDArray[np.int64]) -> pa.Array:
        """Histories as slices of one buffer, with a range per session."""
        starts: list[int] = []
        stretch = 0
        for number in (sizes + 2) // 3:
            starts += [stretch + shift for shift in range(number)]
            stretch += _HISTORY + int(number)
        buffer = pa.array(rng.integers(0, 200, stretch))
        lengths = np.full(len(starts), _HISTORY, np.int32)
        return pa.ListViewArray.from_arrays(pa.array(starts, pa.int32()), pa.array(lengths), buffer)


def has_even_sum(rows: pa.RecordBatch) -> npt.NDArray[np.bool_]:
    """A predicate on plain columns that worker processes can import."""
    total = np.asarray(rows.column("item"), np.int64) + np.asarray(rows.column("user"), np.int64)
    return np.asarray(total % 2 == 0, np.bool_)
