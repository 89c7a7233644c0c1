"""`Shuffle`: shuffles rows, or whole sessions, within consecutive blocks.

The stream is cut into blocks of `num_rows`, and each block is permuted. The order depends only on (seed, epoch, block).

Memory: a block is charged the bytes of the rows it was gathered from, because permuting moves bytes and adds none.
While a block is built, its input rows and the new block exist at the same time, twice the block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.errors import ConfigError, PipelineError
from headrace.logs import groups
from headrace.messages import shorten_list
from headrace.pipeline.transformations.slices import Rebatch, RowSlice, same_schema, slices_of
from headrace.pipeline.transformations.transformation import Transformation, expect_count

__all__ = ["Shuffle", "row_order", "session_order"]


@dataclass(frozen=True)
class Shuffle(Transformation):
    """Permutes the rows of each block; the order depends only on (seed, epoch, block).

    Attributes:
        num_rows: Rows per block.
        seed: Seed of the order.
        session: Session id column: whole sessions are shuffled, and each stays together. None to shuffle single rows.
    """

    num_rows: int
    seed: int = 0
    session: str | None = None

    kind: ClassVar[str] = "shuffle"

    def __post_init__(self) -> None:
        expect_count("shuffle", "num_rows", self.num_rows, at_least=1)
        expect_count("shuffle", "seed", self.seed, at_least=0)

    @classmethod
    def make(
        cls, num_rows: int, seed: int, by: Literal["row", "session"], session: str | None, session_of_source: str | None
    ) -> Shuffle:
        """Create the stage from the arguments of `Pipeline.shuffle`; `session_of_source` is the session id column of
        the source's schema.

        Raises:
            ConfigError: There is no session id column, or an argument is out of range.
        """
        if by not in ("row", "session"):
            raise ConfigError(f'shuffle: by: given {by!r}, expected "row" or "session"')
        if by == "row":
            return cls(num_rows, seed)
        session = session_of_source if session is None else session
        if session is None:
            raise ConfigError(
                'shuffle: by: given "session", but no schema names a session_id; '
                'expected session="the column with the session id"'
            )
        return cls(num_rows, seed, session)

    @property
    def rebatch(self) -> Rebatch:
        return Rebatch(self.num_rows)

    @property
    def signature(self) -> str:
        by = "" if self.session is None else f" by {self.session}"
        return f"shuffle {self.num_rows} rows seed {self.seed}{by}"

    def num_bytes(self, result: Any, num_bytes_in: int) -> int:
        """The bytes of the rows it was gathered from."""
        return num_bytes_in

    def __call__(self, payload: list[RowSlice], seed: tuple[int, ...]) -> pa.RecordBatch:
        slices = slices_of(payload)
        schema = same_schema(slices)
        if self.session is None:
            order = row_order(sum(rows.num_rows for rows in slices), (self.seed, *seed))
        else:
            order = session_order(_join([_column(rows, self.session) for rows in slices]), (self.seed, *seed))
        indices = pa.array(order)
        if groups.has_groups(schema):
            return groups.concat(slices).take(indices)
        # Column by column, so that joining the slices copies one column at a time and not the whole block.
        columns = [_join([rows.column(index) for rows in slices]).take(indices) for index in range(len(schema))]
        return pa.RecordBatch.from_arrays(columns, schema=schema)


def row_order(num_rows: int, seed: tuple[int, ...]) -> NDArray[np.int64]:
    """A random permutation of row positions."""
    return np.random.default_rng(seed).permutation(num_rows)


def session_order(sessions: pa.Array, seed: tuple[int, ...]) -> NDArray[np.int64]:
    """A permutation of row positions: sessions in random order, the rows of each adjacent and in their original order.

    Args:
        sessions: Session of each row; nulls count as one session.
        seed: Seed of the order; equal inputs give equal results.
    """
    while pa.types.is_dictionary(sessions.type):
        sessions = sessions.dictionary_decode()
    encoded = pc.dictionary_encode(sessions, null_encoding="encode")
    numbers = encoded.indices.to_numpy(zero_copy_only=False)
    place = np.random.default_rng(seed).permutation(len(encoded.dictionary))
    return np.argsort(place[numbers], kind="stable")


def _column(rows: pa.RecordBatch, name: str) -> pa.Array:
    """A column with one value per row: a plain column, or an expanded feature of a column group."""
    try:
        return groups.expand(rows, [name]).column(0)
    except KeyError:
        raise PipelineError(
            f"column {name}: missing in the rows to shuffle by session, which have "
            f"{shorten_list(groups.feature_names(rows.schema))}"
        ) from None


def _join(arrays: list[pa.Array]) -> pa.Array:
    return arrays[0] if len(arrays) == 1 else pa.concat_arrays(arrays)
