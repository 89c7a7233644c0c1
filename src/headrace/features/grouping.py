"""Decides which columns to group, as a pure function of measurements on sample rows in batch order.

The cost model is that of RecD (MLSys 2023) for lists of l ids, B rows of which U are unique, and groups of g features:
`B (8 l + 4)` bytes per feature without deduplication, `U (8 l + 4) + 4 B / g` with it. Dense numbers are expanded into
the batch's matrix anyway, so only their computation is saved: `4 B + 4 B` bytes read and written against `8 U + 4 B`.
If grouping saves less than a factor of 1.5 in bytes, the plain path is faster, because finding equal rows has a cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from headrace.config import Config
from headrace.errors import ConfigError
from headrace.logs.break_even import INVERSE_BYTES, MIN_FACTOR
from headrace.messages import shorten_list

__all__ = ["BREAK_EVEN", "ColumnUse", "Grouping", "GroupsConfig", "choose_groups", "read_dedup"]

BREAK_EVEN = MIN_FACTOR
"""Reduction factor in bytes above which a group pays off."""

MIN_ROWS = 256
"""Minimum sample rows for a decision: in a handful of rows, chance repeats look like sessions."""

_GROUP_BYTES = 2 * INVERSE_BYTES
"""Fixed cost of a group in bytes per row: its inverse, and expanding pooled rows."""


class GroupsConfig(Config):
    """Explicit groups, as `dedup: {groups: [[age, history], [liked]]}`."""

    groups: tuple[tuple[str, ...], ...] = Field(min_length=1)
    """Log columns that change together, one list per group."""
    order: Literal["adjacent", "any"] = "adjacent"
    """How equal rows are found: "adjacent" compares each row with the previous one, "any" hashes rows."""


Dedup = Literal["auto", "off"] | GroupsConfig


@dataclass(frozen=True)
class ColumnUse:
    """Measurements of one column over B rows.

    Attributes:
        name: Name of the column.
        changed: Bool [B], whether a row differs from the previous one; True for the first.
        bytes_per_row: Bytes read and written without deduplication: `8 l + 4` for ids, 8 for a number.
        kept_bytes_per_row: Bytes written for every row even with deduplication: 0 for ids, 4 for a number.
    """

    name: str
    changed: NDArray[np.bool_]
    bytes_per_row: float
    kept_bytes_per_row: float


@dataclass(frozen=True)
class Grouping:
    """A decision about groups.

    Attributes:
        groups: Columns of each group; no column is in two groups.
        order: How equal rows are found.
        reason: The reason in words, with the measurements.
        factor: Bytes without deduplication divided by bytes with it, over all columns measured.
    """

    groups: tuple[tuple[str, ...], ...]
    order: Literal["adjacent", "any"]
    reason: str
    factor: float = 1.0


@dataclass
class _Growing:
    """A group under construction."""

    changed: NDArray[np.bool_]
    names: list[str] = field(default_factory=list)
    num_bytes: float = 0.0
    kept_bytes: float = 0.0

    def cost(self, num_unique: int, num_bytes: float) -> float:
        """Cost of unique rows in bytes per row, without the group's fixed cost."""
        return num_unique / len(self.changed) * num_bytes

    @property
    def num_unique(self) -> int:
        return int(np.count_nonzero(self.changed))

    @property
    def after_bytes(self) -> float:
        return self.cost(self.num_unique, self.num_bytes) + self.kept_bytes + _GROUP_BYTES


def choose_groups(columns: Sequence[ColumnUse]) -> Grouping:
    """Group columns that change together, as long as that reduces bytes; drop groups that do not pay off.

    Columns are added, largest first, to the group where they cost least, or start a new group.
    """
    total = sum(column.bytes_per_row for column in columns)
    if not columns or not len(columns[0].changed):
        return Grouping((), "adjacent", "no columns to group")
    groups: list[_Growing] = []
    for column in sorted(columns, key=lambda use: -use.bytes_per_row):
        alone = float(np.count_nonzero(column.changed)) / len(column.changed)
        if alone * column.bytes_per_row + column.kept_bytes_per_row > column.bytes_per_row / BREAK_EVEN:
            continue
        best: _Growing | None = None
        best_cost = alone * column.bytes_per_row + _GROUP_BYTES
        for group in groups:
            joint = int(np.count_nonzero(group.changed | column.changed))
            added = group.cost(joint, group.num_bytes + column.bytes_per_row)
            added -= group.cost(group.num_unique, group.num_bytes)
            if added < best_cost:
                best, best_cost = group, added
        if best is None:
            best = _Growing(np.zeros(len(column.changed), np.bool_))
            groups.append(best)
        best.names.append(column.name)
        best.changed = best.changed | column.changed
        best.num_bytes += column.bytes_per_row
        best.kept_bytes += column.kept_bytes_per_row
    paying = [group for group in groups if group.num_bytes >= BREAK_EVEN * group.after_bytes]
    before = sum(group.num_bytes for group in paying)
    after = total - before + sum(group.after_bytes for group in paying)
    factor = total / after if after else 1.0
    rows = len(columns[0].changed)
    if not paying:
        best_found = max((group.num_bytes / group.after_bytes for group in groups), default=1.0)
        reason = (
            f"no group of columns saves enough: at best {best_found:.2f}x fewer bytes over {rows} rows, "
            f"break-even is {BREAK_EVEN}"
        )
        return Grouping((), "adjacent", reason)
    shared = sum(rows * group.num_bytes for group in paying) / sum(g.num_unique * g.num_bytes for g in paying)
    num_columns = sum(len(group.names) for group in paying)
    reason = (
        f"{num_columns} of {len(columns)} columns in {len(paying)} groups: {shared:.2f} rows per unique row "
        f"(weighted by bytes, over {rows} rows), {factor:.2f}x fewer bytes overall"
    )
    return Grouping(tuple(tuple(group.names) for group in paying), "adjacent", reason, factor)


def read_dedup(value: Any, columns: Mapping[str, Any]) -> Dedup:
    """Parse `features.dedup` of a job file: auto, off, or groups.

    Raises:
        ConfigError: The value is none of these, or a group names an unreadable column, or a column is named twice.
    """
    if value is None or value == "auto":
        return "auto"
    if value is False or value == "off":  # YAML reads a bare off as false
        return "off"
    if not isinstance(value, dict):
        raise ConfigError(f"features.dedup: given {value!r}, expected auto, off or groups: [[column, ...], ...]")
    config = GroupsConfig.from_dict(value, where="features.dedup")
    named = [name for group in config.groups for name in group]
    for name in named:
        if name not in columns:
            raise ConfigError(f"features.dedup.groups: given column {name!r}, expected one of: {shorten_list(columns)}")
        if named.count(name) > 1:
            raise ConfigError(f"features.dedup.groups: column {name!r} is given twice, expected in one group only")
    return config
