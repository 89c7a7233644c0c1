"""`KeyRounds`: tells all trainers the keys of all trainers' batches.

Trainers take part in one round per step, see `MessageRounds`, so all learn the same at the same step. A batch is known
once every trainer has told its part::

    round r     trainer 0   [keys of its batches 7, 8]     then batch 7 is known, and
                trainer 1   [keys of its batch 7     ]     batch 8 when 1 has told it

The keys of a batch, little-endian: int32 number of rows, bytes of an id, bytes of a count, number of counts; int32 [T],
the number of keys of each table; ids, in as many bytes as the largest needs; one bit for each key, whether it occurs
once; counts of the others.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.embeddings.keys import Keys
from headrace.placement.message_rounds import MessageRounds
from headrace.placement.peers import Bytes, MessageKind, Peers

__all__ = ["JointBatch", "KeyRounds", "pack_keys", "unpack_keys"]

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class JointBatch:
    """The keys of a batch of all trainers.

    Attributes:
        parts: The unique keys of each trainer.
        num_rows: Number of rows of each trainer.
    """

    parts: tuple[Keys, ...]
    num_rows: tuple[int, ...]


Part = tuple[Keys, int]


class KeyRounds:
    """The rounds of one trainer.

    Args:
        peers: The trainers.
        num_tables: Number of tables T.
    """

    def __init__(self, peers: Peers, num_tables: int) -> None:
        self._rounds = MessageRounds(peers, MessageKind.KEYS)
        self._rank = peers.rank
        self._num_tables = num_tables
        self._new: list[Part] = []  # not in a message yet
        self._next: list[Part] = []  # in the message of the next round
        self._told: list[deque[Part]] = [deque() for _ in range(peers.size)]  # by each trainer, of batches not known

    @property
    def num_bytes(self) -> int:
        """Bytes sent so far."""
        return self._rounds.num_bytes

    @property
    def is_running(self) -> bool:
        """Whether a round has started and is not finished."""
        return self._rounds.is_running

    def add(self, keys: Keys, num_rows: int) -> None:
        """Add the next batch of this trainer, with its number of rows."""
        self._new.append((keys, num_rows))

    def start(self) -> None:
        """Start a round. All trainers start the same ones."""
        following = np.concatenate([np.empty(0, np.uint8), *(pack_keys(*part, self._num_tables) for part in self._new)])
        self._rounds.start(dict.fromkeys(self._rounds.others, following))
        self._told[self._rank] += self._next
        self._next, self._new = self._new, []

    def finish(self) -> list[JointBatch]:
        """Wait for the others' messages of the round; returns the batches that are known now, in order."""
        for other, message in self._rounds.finish().items():
            self._told[other] += unpack_keys(message, self._num_tables)
        known = []
        for _ in range(min(map(len, self._told))):
            parts = [told.popleft() for told in self._told]
            known.append(JointBatch(tuple(keys for keys, _ in parts), tuple(num_rows for _, num_rows in parts)))
        return known


def pack_keys(keys: Keys, num_rows: int, num_tables: int) -> Bytes:
    """The bytes of a batch, uint8 [n]."""
    id_bytes = _bytes_of(keys.ids)
    others = keys.counts[keys.counts != 1]
    count_bytes = _bytes_of(others)
    header = np.array([num_rows, id_bytes, count_bytes, len(others)], dtype="<i4")
    sizes = np.bincount(keys.tables, minlength=num_tables).astype("<i4")
    ones = np.packbits(keys.counts == 1)
    return np.concatenate(
        [header.view(np.uint8), sizes.view(np.uint8), _low(keys.ids, id_bytes), ones, _low(others, count_bytes)]
    )


def unpack_keys(data: Bytes, num_tables: int) -> list[Part]:
    """The batches of a message: their keys and numbers of rows."""
    found, place = [], 0

    def take(num_bytes: int, count: int) -> Int64s:
        nonlocal place
        first, place = place, place + num_bytes * count
        numbers = np.zeros((count, 8), dtype=np.uint8)
        numbers[:, :num_bytes] = data[first:place].reshape(count, num_bytes)
        taken: Int64s = numbers.reshape(-1).view("<i8")
        return taken

    while place < len(data):
        num_rows, id_bytes, count_bytes, num_others = take(4, 4).tolist()
        tables = np.repeat(np.arange(num_tables, dtype=np.int32), take(4, num_tables))
        ids = take(id_bytes, len(tables))
        ones = take(1, -(-len(tables) // 8)).astype(np.uint8)
        counts = np.unpackbits(ones, count=len(tables)).astype(np.int32)
        counts[counts == 0] = take(count_bytes, num_others)
        found.append((Keys(tables, ids, counts), num_rows))
    return found


def _bytes_of(numbers: npt.NDArray[np.signedinteger[Any]]) -> int:
    """Bytes that each of some numbers needs: from 1, or 8 if any is negative."""
    if not len(numbers):
        return 1
    return 8 if numbers.min() < 0 else max(1, -(-int(numbers.max()).bit_length() // 8))


def _low(numbers: npt.NDArray[np.signedinteger[Any]], num_bytes: int) -> Bytes:
    """The low bytes of some numbers [n], uint8 [n num_bytes]."""
    return numbers.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :num_bytes].reshape(-1)
