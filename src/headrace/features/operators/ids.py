"""Operators on ids: hash, positive_modulus, map_id and local_hour."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from headrace.errors import ConfigError
from headrace.features.kernels import interpret
from headrace.features.kernels.hashing import ID_MASK, mix, string_hash
from headrace.features.operator import FusedOperator, Kind
from headrace.features.program import ProgramBuilder
from headrace.features.registry import register
from headrace.logs.schema import Schema

__all__ = ["Hash", "LocalHour", "MapId", "PositiveModulus", "divisor", "string_id"]

IDS = (Kind.ID, Kind.IDS)


@register
class Hash(FusedOperator):
    """Hashes ids into [0, range): torcharrow's `sigrid_hash`, to the bit.

    h = hash_128_to_64(salt, twang_mix64(id)) of folly, as a signed number, floor-modulo the range.
    """

    name: ClassVar[str] = "hash"
    shorthand: ClassVar[str | None] = "range"
    takes: ClassVar[tuple[Kind, ...]] = IDS
    purpose: ClassVar[str] = "SigridHash: mixes the id with `salt` and maps it into [0, range)"

    range: int = Field(ge=1, lt=2**63)
    salt: int = Field(default=0, ge=-(2**63), lt=2**63)

    def emit(self, program: ProgramBuilder, kind: Kind) -> None:
        multiplier, shift = divisor(self.range)
        program.add(interpret.HASH, self.salt, self.range, multiplier, shift)


@register
class PositiveModulus(FusedOperator):
    """The id modulo a number, never negative, as Python's `%`."""

    name: ClassVar[str] = "positive_modulus"
    shorthand: ClassVar[str | None] = "modulus"
    takes: ClassVar[tuple[Kind, ...]] = IDS
    purpose: ClassVar[str] = "the id modulo `modulus`, never negative"

    modulus: int = Field(ge=1, lt=2**63)

    def emit(self, program: ProgramBuilder, kind: Kind) -> None:
        multiplier, shift = divisor(self.modulus)
        program.add(interpret.MODULUS, 0, self.modulus, multiplier, shift)


@register
class MapId(FusedOperator):
    """Replaces ids using a fixed map; other ids become `default`, or are dropped with `default: null`.

    Keys of string columns are written as strings. Instead of `mapping`, `path` may name a CSV file with the columns
    `id` and `value`.
    """

    name: ClassVar[str] = "map_id"
    shorthand: ClassVar[str | None] = "mapping"
    takes: ClassVar[tuple[Kind, ...]] = IDS
    purpose: ClassVar[str] = "looks up ids in a fixed map; other ids become `default`, or are dropped if it is null"

    mapping: dict[int | str, int] | None = None
    path: Path | None = None
    default: int | None = 0

    @classmethod
    def _is_one_value(cls, parameters: dict[Any, Any]) -> bool:
        return not set(parameters) & set(cls.model_fields)

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.mapping is None) == (self.path is None):
            raise ValueError("exactly one of `mapping` and `path`")
        return self

    @field_validator("path")
    @classmethod
    def _exists(cls, path: Path | None) -> Path | None:
        if path is not None and not path.is_file():
            raise ValueError("a CSV file that exists")
        return path

    def drops_ids(self, kind: Kind) -> bool:
        return self.default is None

    def emit(self, program: ProgramBuilder, kind: Kind) -> None:
        mapping: Mapping[int | str, int] = _read_map(self.path) if self.path is not None else self.mapping or {}
        slots, unused = _slots({string_id(k) if isinstance(k, str) else k: v for k, v in mapping.items()})
        program.add(interpret.MAP_ID, unused, self.default or 0, int(self.default is None), table=slots)


@register
class LocalHour(FusedOperator):
    """The hour of the day, 0 to 23, of a timestamp in a time zone, including daylight saving time.

    Timestamps count from 1970-01-01 UTC in `unit`. Offsets are known from 1970 to 2100 and constant outside.
    """

    name: ClassVar[str] = "local_hour"
    shorthand: ClassVar[str | None] = "timezone"
    takes: ClassVar[tuple[Kind, ...]] = IDS
    purpose: ClassVar[str] = "GetLocalHour: the hour of the day of a timestamp in a time zone"

    timezone: str = "UTC"
    unit: Literal["s", "ms", "us", "ns"] | None = None
    """Unit of the column; by default that of the schema's timestamp."""

    @field_validator("timezone")
    @classmethod
    def _known(cls, timezone: str) -> str:
        try:
            ZoneInfo(timezone)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ValueError("the name of a time zone, such as Europe/Berlin") from error
        return timezone

    def resolve(self, sources: Sequence[str], schema: Schema) -> LocalHour:
        if self.unit is not None:
            return self
        if schema.timestamp is None or schema.timestamp.name not in sources:
            raise ConfigError(
                "unit: missing, expected s, ms, us or ns (only the schema's timestamp has a unit of its own)"
            )
        return self.model_copy(update={"unit": schema.timestamp.unit})

    def emit(self, program: ProgramBuilder, kind: Kind) -> None:
        per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[self.unit or "ms"]
        program.add(interpret.LOCAL_HOUR, per_second, table=_transitions(self.timezone))


def string_id(text: str) -> int:
    """The id of a string: its xxHash64 (seed 0) with the upper bit cleared."""
    data = np.frombuffer(text.encode("utf-8"), np.uint8)
    return int(string_hash(data, 0, len(data))) & int(ID_MASK)


def divisor(number: int) -> tuple[int, int]:
    """A multiplier and a shift with floor(x / number) = (x * multiplier) >> (64 + shift) for all 0 <= x < 2^63.

    With shift = ceil(log2 number) - 1 and multiplier = floor(2^(64 + shift) / number) + 1 < 2^64 the error stays below
    1 / number (Granlund and Montgomery, 1994, theorem 4.2).
    """
    shift = (number - 1).bit_length() - 1
    return ((1 << (64 + shift)) // number + 1, shift) if number > 1 else (0, 0)


def _read_map(path: Path) -> dict[int | str, int]:
    try:
        table = pyarrow.csv.read_csv(path)
        pairs = zip(table["id"].to_pylist(), table["value"].cast(pa.int64()).to_pylist(), strict=True)
    except (pa.ArrowInvalid, KeyError) as error:
        raise ConfigError(
            f"{path}: expected a CSV file with columns id and value and integer values: {error}"
        ) from error
    return dict(pairs)


def _slots(mapping: Mapping[int, int]) -> tuple[NDArray[np.int64], int]:
    """An open-addressing hash table (keys, then values), at most half full, and the key of its empty slots."""
    unused = next(number for number in range(-1, -len(mapping) - 2, -1) if number not in mapping)
    capacity = 1 << max(1, (2 * len(mapping)).bit_length())
    slots = np.full(2 * capacity, unused, np.int64)
    for key, value in mapping.items():
        slot = int(mix(np.uint64(key % 2**64))) & (capacity - 1)
        while slots[slot] != unused:
            slot = (slot + 1) & (capacity - 1)
        slots[slot], slots[capacity + slot] = key, value
    return slots, unused


@functools.lru_cache(maxsize=64)
def _transitions(timezone: str) -> NDArray[np.int64]:
    """The times from 1970 to 2100 at which a zone's UTC offset changes, then the new offsets, in seconds."""
    zone = ZoneInfo(timezone)
    epoch = datetime(1970, 1, 1, tzinfo=UTC)

    def offset(second: int) -> int:
        shift = (epoch + timedelta(seconds=second)).astimezone(zone).utcoffset()
        return int(shift.total_seconds()) if shift is not None else 0

    day, end = 86_400, int((datetime(2100, 1, 1, tzinfo=UTC) - epoch).total_seconds())
    moments, offsets = [0], [offset(0)]
    for start in range(0, end, day):
        if offset(start + day) != offset(start):
            low, high = start, start + day
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if offset(middle) == offset(start) else (low, middle)
            moments.append(high)
            offsets.append(offset(high))
    return np.array(moments + offsets, dtype=np.int64)
