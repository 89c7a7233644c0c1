"""Checks that a numeric timestamp column has the schema's unit; otherwise all hours and windows would be wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as pt

from headrace.errors import ConfigError, DataError
from headrace.logs.canonical import canonical_type, is_text
from headrace.logs.casting import TICKS_PER_S, cast_times
from headrace.logs.footers import Footer, iter_plain, open_parquet
from headrace.logs.plausible_times import US_PER_S, time_text
from headrace.logs.schema import TimestampColumn

__all__ = ["check_column_unit", "check_log_unit", "check_unit", "has_unit", "is_calendar"]

NUM_SAMPLES = 3
"""Row groups to sample, from the first to the last file; most of their times must be wrong."""

SAMPLE_ROWS = 65_536
"""Times per sampled row group."""

KNOWN_YEARS_S = (631_152_000, 4_102_444_800)
"""Seconds of the years 1990 to 2100. Times outside of this range in one unit and inside in another have the other
unit."""

_CALENDAR = re.compile(
    r"(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])"  # yyyymmdd
    r"(([01]\d|2[0-3])([0-5]\d([0-5]\d(\d{3})?)?)?)?"  # HH, HHMM, HHMMSS, and milliseconds
)


def is_calendar(numbers: Sequence[float]) -> bool:
    """Whether all numbers are digits of dates with the same length, from yyyymmdd to yyyymmddHHMMSS and
    milliseconds."""
    texts = [str(int(number)) for number in numbers]
    return len({len(text) for text in texts}) == 1 and all(map(_CALENDAR.fullmatch, texts))


def check_unit(ticks: Sequence[int], name: str, unit: str) -> None:
    """Check that a numeric timestamp column has the schema's unit.

    Args:
        ticks: Sampled values without outliers.
        name: Name of the column.
        unit: Unit in the schema.

    Raises:
        ConfigError: The values are digits of dates, or are in the years 1990 to 2100 only with another unit, which the
            message names.
    """
    if is_calendar(ticks):
        raise ConfigError(
            f"schema: timestamp {name}: the log's times, such as {min(ticks)}, are digits of dates without a unit; "
            f"store timestamps or ISO 8601 text"
        )

    likely = [other for other in TICKS_PER_S if _are_of_known_years(ticks, other)]
    if likely and unit not in likely:
        found = time_text(min(ticks) * US_PER_S // TICKS_PER_S[unit])
        expected = time_text(min(ticks) * US_PER_S // TICKS_PER_S[likely[0]])
        raise ConfigError(
            f"schema: timestamp {name}: unit: given {unit}, but then the log's times, such as {min(ticks)}, would be "
            f"{found}; expected {likely[0]}, with which they are {expected}"
        )


def _are_of_known_years(ticks: Sequence[int], unit: str) -> bool:
    first, stop = (year * TICKS_PER_S[unit] for year in KNOWN_YEARS_S)
    return first <= min(ticks) and max(ticks) < stop


def check_log_unit(footers: Sequence[Footer], clock: TimestampColumn) -> None:
    """Check the unit in some files, using the middle half of the times in a few row groups.

    Raises:
        ConfigError: See `check_unit`.
    """
    numeric = [
        footer
        for footer in footers
        if footer.num_rows and clock.name in footer.schema.names and not has_unit(footer.stored_type(clock.name))
    ]
    places = np.linspace(0, len(numeric) - 1, min(NUM_SAMPLES, len(numeric))).astype(int)
    samples = [_sample(numeric[place], clock) for place in places]
    _check_middle(np.concatenate([np.zeros(0, dtype=np.int64), *samples]), clock)


def check_column_unit(column: pa.Array, clock: TimestampColumn) -> None:
    """Check the unit of a column, using the middle half of its times; raises like `check_unit`."""
    if not has_unit(column.type):
        _check_middle(cast_times(column, clock.unit)[0].drop_null().to_numpy(), clock)


def _check_middle(ticks: npt.NDArray[np.int64], clock: TimestampColumn) -> None:
    if len(ticks):
        cut = len(ticks) // 4
        check_unit(np.sort(ticks)[cut : len(ticks) - cut].tolist(), clock.name, clock.unit)


def has_unit(kind: pa.DataType) -> bool:
    """Whether a type is a time type with a unit of its own."""
    kind = canonical_type(kind)
    return not (pt.is_integer(kind) or pt.is_floating(kind) or pt.is_decimal(kind) or is_text(kind))


def _sample(footer: Footer, clock: TimestampColumn) -> npt.NDArray[np.int64]:
    """Sample times of the first non-empty row group, or only its first and last time if these are conclusive."""
    row_group = next(n for n in range(footer.metadata.num_row_groups) if footer.group_rows(n))
    # Statistics may be damaged: they can avoid reading the data, but only the data can cause a refusal.
    bounds = _bounds(footer, row_group, clock)
    if len(bounds) and _are_of_known_years(bounds.tolist(), clock.unit) and not is_calendar(bounds.tolist()):
        return bounds
    found = [np.zeros(0, dtype=np.int64)]
    with suppress(DataError):  # reported when the rows are read
        found += list(_read_ticks(footer, row_group, clock))
    return np.concatenate(found)


def _bounds(footer: Footer, row_group: int, clock: TimestampColumn) -> npt.NDArray[np.int64]:
    chunk = footer.metadata.row_group(row_group).column(footer.leaves[clock.name][0])
    if not pt.is_signed_integer(footer.stored_type(clock.name)) or chunk.physical_type not in ("INT32", "INT64"):
        return np.zeros(0, dtype=np.int64)
    statistics = chunk.statistics
    if statistics is None or not statistics.has_min_max:
        return np.zeros(0, dtype=np.int64)
    return np.array([statistics.min_raw, statistics.max_raw], dtype=np.int64)


def _read_ticks(footer: Footer, row_group: int, clock: TimestampColumn) -> Iterator[npt.NDArray[np.int64]]:
    with open_parquet(footer) as parquet:
        for batch in iter_plain(footer, parquet, row_group, [clock.name], SAMPLE_ROWS):
            ticks, _ = cast_times(batch.column(0), clock.unit)
            yield ticks.drop_null().to_numpy()
            return
