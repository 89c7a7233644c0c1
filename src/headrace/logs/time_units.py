"""Whether a column of numbers counts time in the unit that a schema says: else every hour and every window is wrong."""

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
"""Row groups that are looked at, from the first to the last file: most of their times must be wrong."""

SAMPLE_ROWS = 65_536
"""Of each."""

KNOWN_YEARS_S = (631_152_000, 4_102_444_800)
"""Seconds of the years 1990 to 2100: what is outside of them in one unit and inside in another has the other."""

_CALENDAR = re.compile(
    r"(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])"  # yyyymmdd
    r"(([01]\d|2[0-3])([0-5]\d([0-5]\d(\d{3})?)?)?)?"  # HH, HHMM, HHMMSS, and milliseconds
)


def is_calendar(numbers: Sequence[float]) -> bool:
    """Whether all numbers are digits of dates, from yyyymmdd to yyyymmddHHMMSS and milliseconds, equally many."""
    texts = [str(int(number)) for number in numbers]
    return len({len(text) for text in texts}) == 1 and all(map(_CALENDAR.fullmatch, texts))


def check_unit(ticks: Sequence[int], name: str, unit: str) -> None:
    """Check that a column of numbers counts the unit that the schema says.

    Args:
        ticks: Some of them, from which the outliers were removed.
        name: Of the column.
        unit: Of the schema.

    Raises:
        ConfigError: They are digits of dates, or lie in the years 1990 to 2100 with another unit, and not with this
            one; names it.
    """
    if is_calendar(ticks):
        raise ConfigError(
            f"schema: timestamp {name}: the log's times, such as {min(ticks)}, are digits of dates and count no unit; "
            f"store timestamps or ISO 8601 text"
        )

    likely = [other for other in TICKS_PER_S if _are_of_known_years(ticks, other)]
    if likely and unit not in likely:
        found = time_text(min(ticks) * US_PER_S // TICKS_PER_S[unit])
        expected = time_text(min(ticks) * US_PER_S // TICKS_PER_S[likely[0]])
        raise ConfigError(
            f"schema: timestamp {name}: unit: given {unit}, but the log's times, such as {min(ticks)}, would be of "
            f"{found}; expected {likely[0]}, with which they are of {expected}"
        )


def _are_of_known_years(ticks: Sequence[int], unit: str) -> bool:
    first, stop = (year * TICKS_PER_S[unit] for year in KNOWN_YEARS_S)
    return first <= min(ticks) and max(ticks) < stop


def check_log_unit(footers: Sequence[Footer], clock: TimestampColumn) -> None:
    """Check the unit of some files by the middle half of the times in a few of their row groups.

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
    """Check the unit of a column by the middle half of its times; raises as `check_unit`."""
    if not has_unit(column.type):
        _check_middle(cast_times(column, clock.unit)[0].drop_null().to_numpy(), clock)


def _check_middle(ticks: npt.NDArray[np.int64], clock: TimestampColumn) -> None:
    if len(ticks):
        cut = len(ticks) // 4
        check_unit(np.sort(ticks)[cut : len(ticks) - cut].tolist(), clock.name, clock.unit)


def has_unit(kind: pa.DataType) -> bool:
    """Whether values of a type are times by themselves, not numbers or texts that may be ones."""
    kind = canonical_type(kind)
    return not (pt.is_integer(kind) or pt.is_floating(kind) or pt.is_decimal(kind) or is_text(kind))


def _sample(footer: Footer, clock: TimestampColumn) -> npt.NDArray[np.int64]:
    """Times in the first row group that has rows, or only the first and last of them if these are beyond doubt."""
    row_group = next(n for n in range(footer.metadata.num_row_groups) if footer.group_rows(n))
    # Statistics may be damaged: they can spare a look at the data, but only the data decides that a log is refused.
    bounds = _bounds(footer, row_group, clock)
    if len(bounds) and _are_of_known_years(bounds.tolist(), clock.unit) and not is_calendar(bounds.tolist()):
        return bounds
    found = [np.zeros(0, dtype=np.int64)]
    with suppress(DataError):  # told where the rows are read
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
