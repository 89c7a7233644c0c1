"""Chooses features for the numbers of an inspected log; `docs/design/0014-defaults.md` has the measurements."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from headrace.logs.inspection import ColumnProfile, Inspection
from headrace.logs.inspection.number_sketch import signed_log1p
from headrace.logs.schema import Schema
from headrace.messages import one_line

__all__ = ["number_features"]

MIN_MISSING = 0.01
"""Share of missing values above which being missing is a feature."""

OUTSIDE = 0.001
"""Share of values beyond each of the bounds that values are clamped to."""

FAR = 10.0
"""How many times the bound the farthest value is if values are clamped: errors and codes, not just large values."""

WIDEST = 2.0
"""Maximum standard deviation."""

MAX_DEVIATIONS = 5.0
"""Standard deviations between the mean and a bound, at most; a rare 1 among zeros would be many more."""


def number_features(found: Inspection, schema: Schema) -> Iterator[tuple[str, Any, str]]:
    """Choose features of the dense columns, for `features.dense` of a job file.

    Numbers become `log1p` of themselves, with mean 0, so that a missing one counts as the mean. Their standard
    deviation becomes 1, or stays if it is between 1 and `WIDEST`. If many are missing, another feature says which.

    Args:
        found: Result of `inspect_log`.
        schema: Schema of the log.

    Yields:
        Name, value in the job file, and reason.
    """
    profiles = {profile.name: profile for profile in found.profiles}
    names = set(schema.columns)
    for column in schema.dense:
        profile = profiles[column.name]
        if profile.numbers.num_values:
            yield column.name, *_operators(profile)
        num_missing = profile.num_nulls + (profile.num_not_finite if column.nan == "allow" else 0)
        share = num_missing / profile.num_rows
        if MIN_MISSING < share < 1:
            name = _new_name(f"{column.name}_missing", names)
            reason = f"{share:.0%} of {one_line(column.name)} are missing: 1 for these, else 0."
            yield name, {"from": column.name, "ops": ["is_null"]}, reason


def _operators(profile: ColumnProfile) -> tuple[list[Any], str]:
    """Operators for the numbers of a column, and the reason."""
    lowest, highest = float(profile.min or 0), float(profile.max or 0)
    low, high = profile.numbers.bounds(OUTSIDE, OUTSIDE)
    low, high = max(low, lowest), min(high, highest)
    far: dict[str, float] = {}
    if signed_log1p(low) - signed_log1p(lowest) > math.log(FAR):
        far["min"] = _rounded(low, math.floor)
    if signed_log1p(highest) - signed_log1p(high) > math.log(FAR):
        far["max"] = _rounded(high, math.ceil)
    reason = f"Nine tenths of the values are {_range(*profile.numbers.bounds(0.05, 0.05))}."
    mean, std = profile.log_moments
    if far:
        farthest = max(lowest, highest, key=abs)
        reason = f"All but {2 * OUTSIDE:.1%} of the values are {_range(low, high)}, the farthest is {farthest:g}."
        ends = far.get("min", -math.inf), far.get("max", math.inf)
        mean, std = profile.numbers.moments(lambda values: signed_log1p(np.clip(values, *ends)))
    farthest_logs = signed_log1p([low, high])
    std = max(std, float(np.abs(farthest_logs - mean).max()) / MAX_DEVIATIONS)
    std = min(std, max(1.0, std / WIDEST))  # wide numbers stay wide: narrower ones are learned more slowly
    operators: list[Any] = [{"clamp": far}] if far else []
    operators.append("log1p")
    if std > 1e-6:  # else all values are the same
        operators.append({"standardize": {"mean": float(f"{mean:.6g}"), "std": float(f"{std:.3g}")}})
    return operators, reason


def _range(low: float, high: float) -> str:
    return f"between {float(f'{low:.3g}'):g} and {float(f'{high:.3g}'):g}"


def _rounded(number: float, to_integer: Any) -> float:
    """A number with two significant digits."""
    if number == 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(abs(number))) - 1)
    return float(f"{to_integer(number / unit) * unit:.2g}")


def _new_name(name: str, names: set[str]) -> str:
    """A name that no column or feature has, added to `names`."""
    while name in names:
        name += "_"
    names.add(name)
    return name
