"""Numbers in as few bits as the largest of each segment needs, as trainers send them to each other.

A segment is the bits of a number, in a byte, its smallest number, in up to 9, and of each number what it is above the
smallest; it ends with a whole byte. Segments of equal numbers are 2 to 10 bytes long, however many there are::

    [700, 701, 703]     2 bits each     smallest 700     0 1 3  ->  00 10 11 .., lowest bit first
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel

__all__ = ["NumberReader", "pack_floats", "pack_ids", "pack_numbers", "packed_bytes"]

HEADER_BYTES = 2
"""The bits of a number of a segment, and the bytes of its smallest number, which follow."""

MOST_BITS = np.int64(32)
"""Bits that are packed at a time, so that they fit beside up to 7 others in 64."""

ONE_BITS = np.float32(1.0).view(np.int32)

Bytes = npt.NDArray[np.uint8]
Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.signedinteger[Any]]


def pack_numbers(numbers: Numbers, sizes: Int64s | None = None) -> Bytes:
    """The bytes of some integers.

    Args:
        numbers: Signed integers [n] of up to 64 bits.
        sizes: int64 [S], the number of integers of each segment, n together; None for one segment.
    """
    numbers, sizes = _as_int64s(numbers), _sizes(numbers, sizes)
    out = np.zeros(_packed_bytes(numbers, sizes), dtype=np.uint8)
    _pack(numbers, sizes, out)
    return out


def packed_bytes(numbers: Numbers, sizes: Int64s | None = None) -> int:
    """The number of bytes that `pack_numbers` returns."""
    return _packed_bytes(_as_int64s(numbers), _sizes(numbers, sizes))


def pack_ids(ids: Numbers, sizes: Int64s) -> Bytes:
    """The bytes of some ids, of which many are equal: distinct ones of a segment, and which of them each is.

    Args:
        ids: Signed integers [n] of up to 64 bits.
        sizes: int64 [S], the number of ids of each segment, n together.
    """
    ids, sizes = _as_int64s(ids), _sizes(ids, sizes)
    num_distinct, kept, places = np.empty_like(sizes), np.empty_like(ids), np.empty_like(ids)
    num_kept, num_places = _distinct(ids, sizes, num_distinct, kept, places)
    kept_sizes, place_sizes = _sizes_with(num_distinct, sizes)
    return np.concatenate(
        [
            pack_numbers(num_distinct),
            pack_numbers(kept[:num_kept], kept_sizes),
            pack_numbers(places[:num_places], place_sizes),
        ]
    )


def pack_floats(numbers: Float32s) -> Bytes:
    """The bytes of float32 [n]: a byte, and 4 bytes each, or a bit each if all are 0 or 1."""
    bits = np.ascontiguousarray(numbers, dtype=np.float32).reshape(-1).view(np.int32)
    is_one = bits == ONE_BITS
    is_binary = bool((is_one | (bits == 0)).all())
    body = np.packbits(is_one) if is_binary else bits.view(np.uint8)
    return np.concatenate([np.array([is_binary], dtype=np.uint8), body])


class NumberReader:
    """Reads what was packed, in the same order.

    Args:
        data: uint8 [n].

    Attributes:
        data: As given.
        place: Position of the next byte.
    """

    def __init__(self, data: Bytes) -> None:
        self.data = data
        self.place = 0

    def __bool__(self) -> bool:
        """Whether there is more."""
        return self.place < len(self.data)

    def take_bytes(self, num_bytes: int) -> Bytes:
        """The next bytes, uint8 [num_bytes], as a view."""
        self.place += num_bytes
        return self.data[self.place - num_bytes : self.place]

    def take_numbers(self, sizes: Int64s | int) -> Int64s:
        """The next int64 [n] in segments of these sizes, or in one."""
        sizes = np.atleast_1d(np.asarray(sizes, dtype=np.int64))
        numbers = np.empty(int(sizes.sum()), dtype=np.int64)
        self.place = _unpack(self.data, self.place, sizes, numbers)
        return numbers

    def take_ids(self, sizes: Int64s) -> Int64s:
        """The next ids int64 [n], in segments of these sizes."""
        sizes = np.asarray(sizes, dtype=np.int64)
        num_distinct = self.take_numbers(len(sizes))
        kept_sizes, place_sizes = _sizes_with(num_distinct, sizes)
        kept = self.take_numbers(kept_sizes)
        segment_of = np.repeat(np.arange(len(sizes)), sizes)
        places = np.arange(len(segment_of)) - (np.cumsum(sizes) - sizes)[segment_of]
        places[num_distinct[segment_of] > 0] = self.take_numbers(place_sizes)
        ids: Int64s = kept[(np.cumsum(kept_sizes) - kept_sizes)[segment_of] + places]
        return ids

    def take_floats(self, count: int) -> Float32s:
        """The next float32 [count]."""
        (is_binary,) = self.take_bytes(1).tolist()
        if is_binary:
            return np.unpackbits(self.take_bytes(-(-count // 8)), count=count).astype(np.float32)
        return self.take_bytes(4 * count).copy().view(np.float32)


def _as_int64s(numbers: Numbers) -> Int64s:
    return np.ascontiguousarray(numbers, dtype=np.int64)


def _sizes(numbers: Numbers, sizes: Int64s | None) -> Int64s:
    return np.array([len(numbers)], dtype=np.int64) if sizes is None else np.asarray(sizes, dtype=np.int64)


def _sizes_with(num_distinct: Int64s, sizes: Int64s) -> tuple[Int64s, Int64s]:
    """Numbers of ids and of positions of each segment, given those of distinct ids; 0 if all its ids are sent."""
    return np.where(num_distinct > 0, num_distinct, sizes), np.where(num_distinct > 0, sizes, 0)


@kernel()
def _range_of(numbers: Int64s, start: int, stop: int) -> tuple[int, int]:
    """The smallest of some numbers, and the bits of the largest above it."""
    if start == stop:
        return 0, 0
    least, most = numbers[start], numbers[start]
    for i in range(start, stop):
        least, most = min(least, numbers[i]), max(most, numbers[i])
    return least, _bits(np.uint64(most) - np.uint64(least))  # type: ignore[arg-type]


@kernel()
def _bits(number: int) -> int:
    """The bits of a uint64."""
    bits, left = 0, np.uint64(number)
    while left != np.uint64(0):
        left >>= np.uint64(1)
        bits += 1
    return bits


@kernel()
def _zigzag(number: int) -> int:
    """A uint64 that is small if an int64 is near 0, on either side."""
    return (np.uint64(number) << np.uint64(1)) ^ np.uint64(number >> 63)  # type: ignore[return-value]


@kernel()
def _packed_bytes(numbers: Int64s, sizes: Int64s) -> int:
    start, num_bytes = 0, 0
    for s in range(len(sizes)):
        least, width = _range_of(numbers, start, start + sizes[s])
        num_bytes += HEADER_BYTES + (_bits(_zigzag(least)) + 7) // 8 + (sizes[s] * width + 7) // 8
        start += sizes[s]
    return num_bytes


@kernel()
def _pack(numbers: Int64s, sizes: Int64s, out: Bytes) -> None:
    start, place = 0, 0
    for s in range(len(sizes)):
        least, width = _range_of(numbers, start, start + sizes[s])
        smallest = np.uint64(_zigzag(least))
        out[place], out[place + 1] = width, (_bits(smallest) + 7) // 8  # type: ignore[arg-type]
        place += HEADER_BYTES
        while smallest != np.uint64(0):
            out[place] = smallest & np.uint64(255)
            smallest >>= np.uint64(8)
            place += 1
        held, num_held = np.uint64(0), np.int64(0)  # bits that do not fill a byte yet
        for i in range(start, start + sizes[s] if width else start):
            above, left = np.uint64(numbers[i]) - np.uint64(least), np.int64(width)
            while left > 0:
                taken = min(left, MOST_BITS)
                held |= (above & np.uint64((np.int64(1) << taken) - 1)) << np.uint64(num_held)
                above >>= np.uint64(taken)
                num_held += taken
                left -= taken
                while num_held >= 8:
                    out[place] = held & np.uint64(255)
                    held >>= np.uint64(8)
                    num_held -= 8
                    place += 1
        if num_held > 0:
            out[place] = held
            place += 1
        start += sizes[s]


@kernel()
def _unpack(data: Bytes, place: int, sizes: Int64s, numbers: Int64s) -> int:
    start = 0
    for s in range(len(sizes)):
        width, smallest = np.int64(data[place]), np.uint64(0)
        num_bytes = np.int64(data[place + 1])
        place += HEADER_BYTES
        for byte in range(num_bytes):
            smallest |= np.uint64(data[place + byte]) << np.uint64(8 * byte)
        place += num_bytes  # type: ignore[assignment]
        least = (smallest >> np.uint64(1)) ^ (np.uint64(0) - (smallest & np.uint64(1)))
        held, num_held = np.uint64(0), np.int64(0)
        for i in range(start, start + sizes[s]):
            above, done = np.uint64(0), np.int64(0)
            while done < width:
                taken = min(width - done, MOST_BITS)
                while num_held < taken:
                    held |= np.uint64(data[place]) << np.uint64(num_held)
                    num_held += 8
                    place += 1
                above |= (held & np.uint64((np.int64(1) << taken) - 1)) << np.uint64(done)
                held >>= np.uint64(taken)
                num_held -= taken
                done += taken
            numbers[i] = np.int64(least + above)
        start += sizes[s]
    return place


@kernel()
def _distinct(ids: Int64s, sizes: Int64s, num_distinct: Int64s, kept: Int64s, places: Int64s) -> tuple[int, int]:
    """The distinct ids of each segment, ascending, and which of them each id is; or all, if that is shorter."""
    start, num_kept, num_places = 0, 0, 0
    for s in range(len(sizes)):
        size = sizes[s]
        segment = ids[start : start + size]
        order = np.argsort(segment)
        count = 0
        for i in range(size):
            if i == 0 or segment[order[i]] != segment[order[i - 1]]:
                kept[num_kept + count] = segment[order[i]]
                count += 1
            places[num_places + order[i]] = count - 1
        _, width = _range_of(ids, start, start + size)
        if (size - count) * width > size * _bits(max(count - 1, 0)):
            num_distinct[s] = count
            num_kept += count
            num_places += size
        else:
            num_distinct[s] = 0
            kept[num_kept : num_kept + size] = segment
            num_kept += size
        start += size
    return num_kept, num_places
