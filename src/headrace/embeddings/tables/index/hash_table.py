"""`HashTable`: compiled loops over a hash table of 4 bytes per slot, from (table, id) to places of records.

A slot does not have the key, but the place of its record, which has it::

    slots    uint32 [segments * S]   tag << bits | (place + 1) << 1 | is_waiting; 0 if the slot is free
    owners   OWNER [rows]            12 bytes: the key of each row
    waiting  WAITING [ids]           18 bytes: keys that were seen but have no row, with their counts

What a place does not need of the 32 bits is a tag, taken from the hash of the key. So a probe of another key's slot
hardly ever looks at its record: with 16 million rows the tag has 7 bits. Each segment has its own number of bits for
places, and is converted when the first place arrives that needs more, so no step converts all slots.

A segment is a hash table of its own with linear probing, which wraps around. A table that grows is a sequence of
segments that is extended by one at a time, by linear hashing (Litwin, "Linear hashing: a new tool for file and table
addressing", VLDB 1980): the first segment that was not yet divided in this round shares its keys with the new one. So a
step moves the keys of one segment, however large the table is, and no segment is more than twice as full as on average.
A table of fixed size has one segment.

Removing a key shifts later slots back, so there are no tombstones. Look-ups are in blocks: all slots are prefetched,
then all records, then compared.
"""

from __future__ import annotations

import secrets
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.embeddings.ops.hashing import mix64
from headrace.embeddings.ops.memory import load16, load32, load64, store16, store32, store64
from headrace.embeddings.ops.prefetch import prefetch
from headrace.embeddings.storage.growing_array import GrowingArray

__all__ = ["MAX_COUNT", "OWNER", "SALT", "WAITING", "Arrays", "HashTable"]

OWNER = np.dtype([("table", np.int32), ("id", np.int64)])  # table -1: a free row
WAITING = np.dtype([("table", np.uint16), ("sightings", np.int32), ("id", np.int64), ("seen", np.uint32)])
OWNER_BYTES, OWNER_ID, WAITING_BYTES, SIGHTINGS, WAITING_ID, SEEN = 12, 4, 18, 2, 6, 14  # sizes and offsets of these
FREE = np.uint64(0xFFFFFFFF)  # the table of a free row

SALT = secrets.randbits(64) - 2**63
"""An int64. Changes the slots of keys in each process, so that nobody can choose ids that fill one segment. No result
depends on them."""

MAX_COUNT = 2**31 - 1
CHUNK = 512  # keys per task of a thread
BLOCK = 32  # keys whose cache lines are prefetched together; a core has 10 to 50 requests in flight
AHEAD = 16  # keys, when segments are divided

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Uint64s = npt.NDArray[np.uint64]


class Arrays(NamedTuple):
    """The arrays of a hash table.

    Attributes:
        slots: uint32 [at least num_segments * segment_slots].
        place_bits: uint32 [at least num_segments], bits of a slot that are the place.
        owners: `OWNER`, at least as many as the highest place of a row.
        waiting: `WAITING`, at least as many as there are.
        num_segments: Number of segments.
        segment_slots: Slots S of a segment.
    """

    slots: GrowingArray
    place_bits: GrowingArray
    owners: GrowingArray
    waiting: GrowingArray
    num_segments: int
    segment_slots: int

    @classmethod
    def empty(cls, num_segments: int, segment_slots: int, num_rows: int, num_waiting: int) -> Arrays:
        """Arrays without keys, with room for records."""
        slots, place_bits = GrowingArray(num_segments * segment_slots, np.uint32), GrowingArray(num_segments, np.uint32)
        place_bits.array[:] = ((max(num_rows, num_waiting) << 1) | 1).bit_length()
        owners, waiting = GrowingArray(num_rows, OWNER), GrowingArray(num_waiting, WAITING)
        return cls(slots, place_bits, owners, waiting, num_segments, segment_slots)

    @property
    def num_slots(self) -> int:
        """Slots of all segments."""
        return self.num_segments * self.segment_slots

    @property
    def num_bytes(self) -> int:
        """Bytes of the arrays."""
        return sum(each.num_bytes for each in (self.slots, self.place_bits, self.owners, self.waiting))

    @property
    def table(self) -> HashTable:
        """The hash table for one call of a kernel, during which the arrays must live and keep their sizes."""
        return HashTable(
            self.slots.address,
            self.place_bits.address,
            self.owners.address,
            self.waiting.address,
            self.num_segments,
            1 << (self.num_segments.bit_length() - 1),
            self.segment_slots,
            SALT,
        )


class HashTable(NamedTuple):
    """What kernels take of `Arrays`: addresses and numbers, see `ops.memory`.

    Attributes:
        slots, place_bits, owners, waiting: Addresses.
        num_segments: Number of segments.
        round_segments: Number of segments when the present round began: the highest power of two that is not greater.
        segment_slots: Slots S of a segment.
        salt: Salt of hashes.
    """

    slots: int
    place_bits: int
    owners: int
    waiting: int
    num_segments: int
    round_segments: int
    segment_slots: int
    salt: int


@kernel()
def hash_of(index: HashTable, table: int, key: int) -> np.uint64:
    """The hash of (table, id). Its low bits choose the segment, the next ones are the tag, the high ones the slot."""
    return mix64(mix64(np.uint64(key) ^ np.uint64(index.salt)) + np.uint64(table))


@kernel()
def _segment_of(index: HashTable, hashed: np.uint64) -> Any:
    low = np.int64(hashed) & (2 * index.round_segments - 1)
    return low if low < index.num_segments else low - index.round_segments


@kernel()
def _home(hashed: np.uint64, num_slots: int) -> Any:
    """The first slot to probe in a segment."""
    return np.int64(((hashed >> np.uint64(32)) * np.uint64(num_slots)) >> np.uint64(32))


@kernel()
def _word(hashed: np.uint64) -> np.uint64:
    """The bits of a hash that are compared with those of a slot; the high ones are the tag."""
    return (hashed >> np.uint64(4)) & np.uint64(0xFFFFFFFF)


@kernel()
def _bits_of(index: HashTable, segment: int) -> Any:
    return load32(index.place_bits + 4 * segment)


@kernel()
def _value_in(slot: np.uint64, bits: np.uint64) -> Any:
    """The value in a slot."""
    return np.int64(slot & ((np.uint64(1) << bits) - np.uint64(1)))


@kernel()
def value_of(place: int, is_waiting: bool) -> Any:
    """What a slot has of a place, beside the tag."""
    return np.int64(((place + 1) << 1) | np.int64(is_waiting))


@kernel()
def place_of(value: int) -> Any:
    """The place in a slot's value."""
    return np.int64((value >> 1) - 1)


@kernel()
def is_waiting(value: int) -> bool:
    """Whether a slot's value is a place in `waiting`."""
    return value & 1 != 0


@kernel()
def is_free(index: HashTable, place: int) -> Any:
    """Whether no key has the row at a place."""
    return load32(index.owners + place * OWNER_BYTES) == FREE


@kernel()
def set_owner(index: HashTable, place: int, table: int, key: int) -> None:
    """Store the key of a row."""
    store32(index.owners + place * OWNER_BYTES, table)
    store64(index.owners + place * OWNER_BYTES + OWNER_ID, key)


@kernel()
def free_owner(index: HashTable, place: int) -> None:
    """Store that no key has a row."""
    set_owner(index, place, -1, 0)


@kernel()
def set_waiting(index: HashTable, place: int, table: int, key: int) -> None:
    """Store a key that waits."""
    store16(index.waiting + place * WAITING_BYTES, table)
    store64(index.waiting + place * WAITING_BYTES + WAITING_ID, key)


@kernel()
def set_seen(index: HashTable, place: int, sightings: Any, seen: Any) -> None:
    """Store how often a key that waits was seen, and when."""
    store32(index.waiting + place * WAITING_BYTES + SIGHTINGS, sightings)
    store32(index.waiting + place * WAITING_BYTES + SEEN, seen)


@kernel()
def sightings_of(index: HashTable, value: int) -> Any:
    """How often the key of a slot's value was seen that waits."""
    return np.int64(load32(index.waiting + place_of(value) * WAITING_BYTES + SIGHTINGS))


@kernel()
def key_of(index: HashTable, value: int) -> tuple[Any, Any]:
    """The (table, id) of a slot's value."""
    place = place_of(value)
    if is_waiting(value):
        at = index.waiting + place * WAITING_BYTES
        return np.int64(load16(at)), load64(at + WAITING_ID)
    at = index.owners + place * OWNER_BYTES
    return np.int64(load32(at)), load64(at + OWNER_ID)


@kernel()
def _is_of(index: HashTable, value: int, table: int, key: int) -> Any:
    """Whether a slot's value is the place of (table, id)."""
    its_table, its_id = key_of(index, value)
    return its_id == key and its_table == table


@kernel()
def _hash_of_value(index: HashTable, value: int) -> np.uint64:
    """The hash of the key of a slot's value."""
    table, key = key_of(index, value)
    return hash_of(index, table, key)


@kernel()
def _candidate(index: HashTable, hashed: np.uint64) -> tuple[Any, Any]:
    """The first slot with the tag of a key, and its value; or the free slot before it, and 0."""
    segment = _segment_of(index, hashed)
    begin, at = segment * index.segment_slots, _home(hashed, index.segment_slots)
    bits, word = _bits_of(index, segment), _word(hashed)
    slot = np.uint64(0)
    for _ in range(index.segment_slots):
        slot = load32(index.slots + 4 * (begin + at))
        if slot == 0 or (slot ^ word) >> bits == 0:
            break
        at += 1
        if at == index.segment_slots:
            at = np.int64(0)
    return begin + at, _value_in(slot, bits)


@kernel()
def _probe_on(index: HashTable, hashed: np.uint64, table: int, key: int) -> tuple[Any, Any]:
    """As `probe`, if the first candidate has another key."""
    segment = _segment_of(index, hashed)
    begin, at = segment * index.segment_slots, _home(hashed, index.segment_slots)
    bits, word = _bits_of(index, segment), _word(hashed)
    for _ in range(index.segment_slots):
        slot = load32(index.slots + 4 * (begin + at))
        if slot == 0:
            break
        if (slot ^ word) >> bits == 0 and _is_of(index, _value_in(slot, bits), table, key):
            return begin + at, _value_in(slot, bits)
        at += 1
        if at == index.segment_slots:
            at = np.int64(0)
    return begin + at, np.int64(0)


@kernel()
def probe(index: HashTable, hashed: np.uint64, table: int, key: int) -> tuple[Any, Any]:
    """The slot of (table, id) and its value, or the free slot for it and 0."""
    slot, value = _candidate(index, hashed)
    if value != 0 and not _is_of(index, value, table, key):
        slot, value = _probe_on(index, hashed, table, key)
    return slot, value


@kernel()
def prefetch_slot(index: HashTable, hashed: np.uint64) -> None:
    """Prefetch the first slot that is probed for a key."""
    slot = _segment_of(index, hashed) * index.segment_slots + _home(hashed, index.segment_slots)
    prefetch(index.slots + 4 * slot)


@kernel()
def prefetch_record(index: HashTable, value: int) -> None:
    """Prefetch the record of a slot's value."""
    place = place_of(value)
    prefetch(index.waiting + place * WAITING_BYTES if is_waiting(value) else index.owners + place * OWNER_BYTES)


@kernel()
def candidate(index: HashTable, hashed: np.uint64) -> Any:
    """The value of the first slot with the tag of a key, whose record is prefetched; 0 if there is none."""
    value = _candidate(index, hashed)[1]
    if value != 0:
        prefetch_record(index, value)
    return value


@kernel()
def value_from(index: HashTable, hashed: np.uint64, candidate: int, table: int, key: int) -> Any:
    """The value of the slot of (table, id), given the candidate; 0 if there is none."""
    if candidate != 0 and not _is_of(index, candidate, table, key):
        return _probe_on(index, hashed, table, key)[1]
    return np.int64(candidate)


@kernel()
def find_block(
    index: HashTable, tables: Int32s, ids: Int64s, begin: int, end: int, hashes: Uint64s, values: Int64s
) -> None:
    """Find the values [U] of keys [begin, end), at most `BLOCK`, 0 for others; `hashes` is scratch of that length."""
    for u in range(begin, end):
        hashes[u - begin] = hash_of(index, tables[u], ids[u])
        prefetch_slot(index, hashes[u - begin])
    for u in range(begin, end):
        values[u] = candidate(index, hashes[u - begin])
    for u in range(begin, end):
        values[u] = value_from(index, hashes[u - begin], values[u], tables[u], ids[u])


@kernel(parallel=True)
def find_values(index: HashTable, tables: Int32s, ids: Int64s, values: Int64s) -> None:
    """Find the values of keys [U]; 0 for keys without a slot."""
    for chunk in numba.prange((len(ids) + CHUNK - 1) // CHUNK):
        hashes = np.empty(BLOCK, dtype=np.uint64)
        for begin in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(ids)), BLOCK):
            find_block(index, tables, ids, begin, min(begin + BLOCK, len(ids)), hashes, values)


@kernel()
def write(index: HashTable, slot: int, hashed: np.uint64, value: int) -> None:
    """Write a value into the slot of a key, and convert its segment if the place needs more bits."""
    segment = _segment_of(index, hashed)
    if value >> np.int64(_bits_of(index, segment)) != 0:
        _widen(index, segment, value)
    bits = _bits_of(index, segment)
    store32(index.slots + 4 * slot, np.int64((_word(hashed) >> bits) << bits) | value)


@kernel()
def _widen(index: HashTable, segment: int, value: int) -> None:
    """Clear bits of the tags of a segment, so that a value has room."""
    bits = np.int64(_bits_of(index, segment))
    more = bits
    while value >> more != 0:
        more += 1
    kept = ~(((1 << more) - 1) ^ ((1 << bits) - 1))
    for slot in range(segment * index.segment_slots, (segment + 1) * index.segment_slots):
        store32(index.slots + 4 * slot, np.int64(load32(index.slots + 4 * slot)) & kept)
    store32(index.place_bits + 4 * segment, more)


@kernel()
def prefetch_run(index: HashTable, hashed: np.uint64) -> None:
    """Prefetch what `erase` reads: the records of the slots from the first one of a key to the next free one."""
    segment = _segment_of(index, hashed)
    begin, at, bits = segment * index.segment_slots, _home(hashed, index.segment_slots), _bits_of(index, segment)
    for _ in range(index.segment_slots):
        slot = load32(index.slots + 4 * (begin + at))
        if slot == 0:
            break
        prefetch_record(index, _value_in(slot, bits))
        at = at + 1 if at + 1 < index.segment_slots else np.int64(0)


@kernel()
def erase(index: HashTable, slot: int, hashed: np.uint64) -> None:
    """Free the slot of a key, and shift later ones back (Knuth, The Art of Computer Programming 3, 6.4, R)."""
    size, segment = index.segment_slots, _segment_of(index, hashed)
    begin, bits = segment * size, _bits_of(index, segment)
    hole = slot - begin
    at = hole + 1 if hole + 1 < size else np.int64(0)
    for _ in range(size - 1):
        later = load32(index.slots + 4 * (begin + at))
        if later == 0:
            break
        home = _home(_hash_of_value(index, _value_in(later, bits)), size)
        from_home = at - home if at >= home else at - home + size
        from_hole = at - hole if at >= hole else at - hole + size
        if from_home >= from_hole:  # its home is not after the hole
            store32(index.slots + 4 * (begin + hole), np.int64(later))
            hole = at
        at = at + 1 if at + 1 < size else np.int64(0)
    store32(index.slots + 4 * (begin + hole), 0)


@kernel()
def drop_waiting(index: HashTable, place: int, num_waiting: int) -> None:
    """Remove a record of `waiting` whose slot is about to change, and move the last one to its place."""
    last = num_waiting - 1
    if place == last:
        return
    table, key = key_of(index, value_of(last, True))
    hashed = hash_of(index, table, key)
    slot, _ = probe(index, hashed, table, key)
    set_waiting(index, place, table, key)
    seen = load32(index.waiting + last * WAITING_BYTES + SEEN)
    set_seen(index, place, sightings_of(index, value_of(last, True)), np.int64(seen))
    write(index, slot, hashed, value_of(place, True))


@kernel()
def _enter(index: HashTable, value: int) -> bool:
    """Insert the value of a record whose key has no slot; whether there was room."""
    hashed = _hash_of_value(index, value)
    begin, at = _segment_of(index, hashed) * index.segment_slots, _home(hashed, index.segment_slots)
    for _ in range(index.segment_slots):
        if load32(index.slots + 4 * (begin + at)) == 0:
            write(index, begin + at, hashed, value)
            return True
        at += 1
        if at == index.segment_slots:
            at = np.int64(0)
    return False


@kernel()
def enter_all(index: HashTable, places: Int64s, are_waiting: bool) -> bool:
    """Insert records whose keys have no slots; whether there was room for all."""
    for begin in range(0, len(places), BLOCK):
        end = min(begin + BLOCK, len(places))
        for i in range(begin, end):
            prefetch_record(index, value_of(places[i], are_waiting))
        for i in range(begin, end):
            prefetch_slot(index, _hash_of_value(index, value_of(places[i], are_waiting)))
        for i in range(begin, end):
            if not _enter(index, value_of(places[i], are_waiting)):
                return False
    return True


@kernel()
def add_segment(index: HashTable, values: Int64s) -> bool:
    """Divide the keys of a segment between it and the new one, which is the last of `index`.

    Args:
        index: The hash table with the new segment, whose slots are free.
        values: int64 [S], scratch.

    Returns:
        Whether there was room.
    """
    size, new = index.segment_slots, index.num_segments - 1
    segment = new - (index.round_segments if new >= index.round_segments else index.round_segments // 2)
    bits = _bits_of(index, segment)
    num_values = 0
    for slot in range(segment * size, (segment + 1) * size):
        word = load32(index.slots + 4 * slot)
        if word != 0:
            values[num_values] = _value_in(word, bits)
            num_values += 1
            store32(index.slots + 4 * slot, 0)
    store32(index.place_bits + 4 * new, np.int64(bits))
    for i in range(min(AHEAD, num_values)):
        prefetch_record(index, values[i])
    for i in range(num_values):
        if i + AHEAD < num_values:
            prefetch_record(index, values[i + AHEAD])
        if not _enter(index, values[i]):
            return False
    return True


def num_slots_of(num_rows: int, load: float) -> int:
    """Slots of a table of fixed size; one is always free, so that a search ends."""
    return int(num_rows / load) + 2
