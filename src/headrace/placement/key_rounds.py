"""`KeyRounds`: tells all trainers the keys of all trainers' batches.

Trainers take part in one round per step, so all learn the same at the same step. A batch is known once every trainer
has told its part. A message also has the length of the sender's next one, so lengths are known in advance::

    round r     trainer 0   [length of 0's message r+1 | keys of its batches 7, 8]     then batch 7 is known, and
                trainer 1   [length of 1's message r+1 | keys of its batch 7     ]     batch 8 when 1 has told it

The keys of a batch, little-endian: int32 number of rows, bytes per id (4 or 8), bytes per count (1 or 4); int32 [T],
the number of keys of each table; ids; counts.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace.embeddings.keys import Keys
from headrace.placement.peers import Bytes, MessageKind, Peers, Receipt, tag_of

__all__ = ["JointBatch", "KeyRounds", "pack_keys", "unpack_keys"]

HEADER_BYTES = 8

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

    Attributes:
        num_bytes: Bytes sent so far.
    """

    def __init__(self, peers: Peers, num_tables: int) -> None:
        self.num_bytes = 0
        self._peers = peers
        self._num_tables = num_tables
        self._number = 0
        self._new: list[Part] = []  # not in a message yet
        self._next: list[Part] = []  # in the message of the next round
        self._message: Bytes = np.empty(0, dtype=np.uint8)  # of the next round
        self._lengths = [0] * peers.size  # of the next messages
        self._receipts: dict[int, Receipt] = {}
        self._told: list[deque[Part]] = [deque() for _ in range(peers.size)]  # by each trainer, of batches not known

    @property
    def is_running(self) -> bool:
        """Whether a round has started and is not finished."""
        return bool(self._receipts)

    def add(self, keys: Keys, num_rows: int) -> None:
        """Add the next batch of this trainer, with its number of rows."""
        self._new.append((keys, num_rows))

    def start(self) -> None:
        """Start a round. All trainers start the same ones."""
        assert not self._receipts
        following = np.concatenate([np.empty(0, np.uint8), *(pack_keys(*part, self._num_tables) for part in self._new)])
        message = np.concatenate([np.array([len(following)], dtype="<i8").view(np.uint8), self._message])
        self._message = following
        self._told[self._peers.rank] += self._next
        self._next, self._new = self._new, []
        tag, others = tag_of(self._number, MessageKind.KEYS), self._others()
        self._number += 1
        for other in others:
            self._receipts[other] = self._peers.receive(other, HEADER_BYTES + self._lengths[other], tag=tag)
        for other in others:
            self._peers.send(other, message, tag=tag)
        self.num_bytes += len(message) * len(others)

    def finish(self) -> list[JointBatch]:
        """Wait for the others' messages of the round; returns the batches that are known now, in order."""
        for other, receipt in self._receipts.items():
            message = receipt.result()
            self._lengths[other] = int(message[:HEADER_BYTES].view("<i8")[0])
            self._told[other] += unpack_keys(message[HEADER_BYTES:], self._num_tables)
        self._receipts.clear()
        known = []
        for _ in range(min(map(len, self._told))):
            parts = [told.popleft() for told in self._told]
            known.append(JointBatch(tuple(keys for keys, _ in parts), tuple(num_rows for _, num_rows in parts)))
        return known

    def _others(self) -> list[int]:
        return [trainer for trainer in range(self._peers.size) if trainer != self._peers.rank]


def pack_keys(keys: Keys, num_rows: int, num_tables: int) -> Bytes:
    """The bytes of a batch, uint8 [n]."""
    ids_fit = not len(keys) or (keys.ids.min() >= -(1 << 31) and keys.ids.max() < 1 << 31)
    counts_fit = not len(keys) or keys.counts.max() < 1 << 8
    ids = keys.ids.astype("<i4" if ids_fit else "<i8")
    counts = keys.counts.astype(np.uint8 if counts_fit else "<i4")
    header = np.array([num_rows, ids.itemsize, counts.itemsize], dtype="<i4")
    sizes = np.bincount(keys.tables, minlength=num_tables).astype("<i4")
    return np.concatenate([each.view(np.uint8) for each in (header, sizes, ids, counts)])


def unpack_keys(data: Bytes, num_tables: int) -> list[Part]:
    """The batches of a message: their keys and numbers of rows."""
    found, place = [], 0

    def take(dtype: str, count: int) -> npt.NDArray[np.int64]:
        nonlocal place
        first, place = place, place + np.dtype(dtype).itemsize * count
        taken: Int64s = np.frombuffer(data[first:place].tobytes(), dtype=dtype).astype(np.int64)
        return taken

    while place < len(data):
        num_rows, id_bytes, count_bytes = take("<i4", 3).tolist()
        sizes = take("<i4", num_tables)
        tables = np.repeat(np.arange(num_tables, dtype=np.int32), sizes)
        ids = take(f"<i{id_bytes}", len(tables))
        counts = take("u1" if count_bytes == 1 else "<i4", len(tables)).astype(np.int32)
        found.append((Keys(tables, ids, counts), num_rows))
    return found
