"""What every operator means, in plain Python on lists of rows; the kernels are compared with this.

Numbers are floats or None, ids ints or None, lists are lists of those.
"""

import bisect
import math
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any
from zoneinfo import ZoneInfo

MASK = 2**64 - 1


def signed(number: int) -> int:
    return (number & MASK) - (1 << 64) if (number & MASK) >> 63 else number & MASK


def mix(key: int) -> int:
    key = (~key + (key << 21)) & MASK
    key ^= key >> 24
    key = (key + (key << 3) + (key << 8)) & MASK
    key ^= key >> 14
    key = (key + (key << 2) + (key << 4)) & MASK
    key ^= key >> 28
    return (key + (key << 31)) & MASK


def combine(upper: int, lower: int) -> int:
    factor = 0x9DDFEA08EB382D69
    first = ((lower ^ upper) & MASK) * factor & MASK
    first ^= first >> 47
    second = ((upper & MASK) ^ first) * factor & MASK
    second ^= second >> 47
    return second * factor & MASK


def joined(first: int, second: int) -> int:
    return combine(first & MASK, mix(second & MASK)) & (2**63 - 1)


PRIMES = (
    0x9E3779B185EBCA87,
    0xC2B2AE3D27D4EB4F,
    0x165667B19E3779F9,
    0x85EBCA77C2B2AE63,
    0x27D4EB2F165667C5,
)


def rotate(number: int, bits: int) -> int:
    return ((number << bits) | (number >> (64 - bits))) & MASK


def xxh64(data: bytes) -> int:
    """xxHash64 with seed 0, as its specification words it."""
    one, two, three, four, five = PRIMES

    def step(accumulator: int, lane: int) -> int:
        return rotate((accumulator + lane * two) & MASK, 31) * one & MASK

    def word(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], "little")

    at, total = 0, five
    if len(data) >= 32:
        lanes = [(one + two) & MASK, two, 0, -one & MASK]
        while at + 32 <= len(data):
            lanes = [step(lane, word(at + 8 * number, 8)) for number, lane in enumerate(lanes)]
            at += 32
        total = sum(rotate(lane, bits) for lane, bits in zip(lanes, (1, 7, 12, 18), strict=True)) & MASK
        for lane in lanes:
            total = ((total ^ step(0, lane)) * one + four) & MASK
    total = (total + len(data)) & MASK
    while at + 8 <= len(data):
        total = (rotate(total ^ step(0, word(at, 8)), 27) * one + four) & MASK
        at += 8
    if at + 4 <= len(data):
        total = (rotate(total ^ (word(at, 4) * one & MASK), 23) * two + three) & MASK
        at += 4
    for byte in data[at:]:
        total = rotate(total ^ (byte * five & MASK), 11) * one & MASK
    total = (total ^ (total >> 33)) * two & MASK
    total = (total ^ (total >> 29)) * three & MASK
    return total ^ (total >> 32)


def string_id(text: str) -> int:
    return xxh64(text.encode()) & (2**63 - 1)


def sigrid_hash(id_: int, range_: int, salt: int = 0) -> int:
    return signed(combine(salt & MASK, mix(id_ & MASK))) % range_


def in_sample(row_id: int, seed: int, probability: float) -> bool:
    return combine(seed, mix(row_id & MASK)) >> 1 < min(int(probability * 2**63), 2**63 - 1)


def fill(value: float) -> Callable[[float | None], float]:
    return lambda x: value if x is None or math.isnan(x) else x


def is_null(x: float | None) -> float:
    return float(x is None or math.isnan(x))


def maybe(function: Callable[[float], float | None]) -> Callable[[float | None], float | None]:
    """Null and NaN stay null."""
    return lambda x: None if x is None or math.isnan(x) else function(x)


def log1p(x: float) -> float:
    return math.copysign(math.log1p(abs(x)), x) if not math.isinf(x) else x


def box_cox(x: float, power: float) -> float | None:
    if x < 0 or (x == 0 and power < 0):
        return None
    if power == 0:
        return math.log(x) if x > 0 else None
    return (x**power - 1) / power


def logit(x: float, epsilon: float) -> float:
    share = min(max(x, epsilon), 1 - epsilon)
    return math.log(share / (1 - share))


def bucketize(x: float, borders: list[float]) -> int:
    below = bisect.bisect_left(borders, x)
    return below + 1 if borders[below : below + 2] == [x, x] else below


def local_hour(moment: int, per_second: int, zone: str) -> int:
    second = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=moment // per_second)
    return second.astimezone(ZoneInfo(zone)).hour


def cartesian(*lists: list[int], limit: int = 1024) -> list[int]:
    result = lists[0]
    for other in lists[1:]:
        result = [joined(a, b) for a, b in product(result, other)][:limit]
    return result


def ngram(ids: list[int], size: int) -> list[int]:
    grams = []
    for start in range(len(ids) - size + 1):
        gram = ids[start]
        for id_ in ids[start + 1 : start + size]:
            gram = joined(gram, id_)
        grams.append(gram)
    return grams


def compute_score(mode: str, ids: list[int], scores: list[float], others: list[int], theirs: list[float]) -> float:
    left, right = Counter(ids), Counter(others)
    shared = set(left) & set(right)
    if not shared:
        return 0.0
    overlap = sum(min(left[id_], right[id_]) for id_ in shared)
    matching = [score for id_, score in zip(others, theirs, strict=True) if id_ in shared]
    simple: dict[str, Callable[[], float]] = {
        "overlap": lambda: 1,
        "count": lambda: overlap,
        "max_count": lambda: sum(max(left[id_], right[id_]) for id_ in shared),
        "jaccard": lambda: overlap / (len(ids) + len(others) - overlap),
        "sum": lambda: sum(matching),
        "min": lambda: min(matching),
        "max": lambda: max(matching),
    }
    if mode in simple:
        return simple[mode]()
    one, two = sums(ids, scores), sums(others, theirs)
    norms = math.sqrt(sum(v * v for v in one.values())) * math.sqrt(sum(v * v for v in two.values()))
    return sum(one[id_] * two[id_] for id_ in shared) / norms if norms else 0.0


def sums(ids: list[int], scores: list[float]) -> dict[int, float]:
    result: dict[int, float] = {}
    for id_, score in zip(ids, scores, strict=True):
        result[id_] = result.get(id_, 0.0) + score
    return result


def listed(rows: list[Any]) -> list[list[Any]]:
    """Single ids as lists of one or none, lists without their nulls."""
    return [
        [] if row is None else [id_ for id_ in row if id_ is not None] if isinstance(row, list) else [row]
        for row in rows
    ]
