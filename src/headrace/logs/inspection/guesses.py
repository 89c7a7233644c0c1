"""Guesses the role of each column of a log from its name, type and statistics, with reasons."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.types as pt

from headrace.errors import ConfigError
from headrace.logs.inspection.profiles import ColumnProfile
from headrace.logs.schema import Schema, is_reserved
from headrace.logs.time_units import is_calendar
from headrace.messages import shorten_list

__all__ = ["Guess", "Part", "guess_parts", "make_schema", "parts_of_schema"]

Part = Literal[
    "label", "dense", "id", "id_list", "id_weights", "timestamp", "session_id", "row_id", "weight", "ignored"
]


def word_set(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


LABEL_WORDS = word_set("label labels target y click clicked conversion converted purchase purchased install")
COUNTING_WORDS = word_set("count counts num number total sum avg mean rate ratio ctr clicks views impressions")
DENSE_WORDS = word_set(
    "amount price age score value size length width height duration seconds days distance rank dense i"
)
ID_WORDS = word_set(
    "id ids uid uuid key hash code cat category type kind user item article ad advertiser campaign creative product "
    "country region city zip language locale os device browser site page domain url publisher brand segment group "
    "gender hour weekday dow referrer environment channel c"
)
SURE_ID_WORDS = word_set("id ids uid uuid key hash")
TIME_WORDS = word_set("time timestamp ts datetime date at ms epoch")
SESSION_WORDS = word_set("session sess visit sid")
BOUND_WORDS = word_set("start started begin end ended")
"""Words beside those of a session that name a time of it and not an id."""
ROW_NAMES = frozenset({"row", "row id", "event id", "impression id", "request id", "record id", "sample id", "log id"})
WEIGHT_NAMES = frozenset({"weight", "sample weight", "example weight", "importance", "importance weight"})

EPOCH_RANGE_S = (946_684_800, 4_102_444_800)
"""Seconds of the years 2000 to 2100: integers in this range, in one of the units, look like times."""
UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}

MAX_ODD_RATIO = 0.001
"""Share of NaN and infinite numbers above which they are missing values rather than bad rows."""

MIN_ROWS_FOR_UNIQUE = 1_000
"""With fewer rows, a useful column may have all distinct values by chance."""


@dataclass(frozen=True)
class Guess:
    """The guessed role of a column.

    Attributes:
        name: Name of the column.
        part: Its role in the schema, or "ignored".
        reason: The reason for the guess.
        options: Options of the column in the schema.
        is_sure: Whether it has precedence over unsure guesses, for roles that only one column can have.
    """

    name: str
    part: Part
    reason: str
    options: tuple[tuple[str, Any], ...] = ()
    is_sure: bool = True


FRAME_INDEX = re.compile(r"__index_level_\d+__|Unnamed: \d+.*|")
"""Names that pandas gives to a DataFrame's index in Parquet and CSV files."""

SINGLE_PARTS: tuple[Part, ...] = ("timestamp", "session_id", "row_id", "weight")


def guess_parts(
    profiles: Sequence[ColumnProfile], *, label: str | None = None, ignore: Collection[str] = ()
) -> list[Guess]:
    """Guess the role of each column.

    The first column wins a role that only one can have (timestamp, session id, row id, weight). If no column is named
    like a label, the first one with only 0 and 1 is the label.

    Args:
        profiles: Profiles of all columns.
        label: The column that is the label; columns that look like other labels are then ignored, as they may tell it.
            None to guess the labels.
        ignore: Columns that have no role.

    Raises:
        ConfigError: `label` is not a column of numbers.
    """
    lists = {profile.name: profile for profile in profiles if profile.kind in ("list of int", "list of string")}
    guesses = []
    for profile in profiles:
        guess = _guess(profile, lists)
        if profile.name == label:
            guess = _given_label(profile)
        elif profile.name in ignore:
            guess = Guess(profile.name, "ignored", "to be ignored, as given")
        elif label is not None and guess.part == "label":
            guess = Guess(profile.name, "ignored", f"looks like a label too, and may tell the given one, {label}")
        guesses.append(guess)
    for part in SINGLE_PARTS:
        rivals = [guess for guess in guesses if guess.part == part]
        for winner in [*(guess for guess in rivals if guess.is_sure), *rivals][:1]:
            reason = f"another {part}: {winner.name} is used"
            guesses = [Guess(g.name, "ignored", reason) if g in rivals and g is not winner else g for g in guesses]
    if not any(guess.part == "label" for guess in guesses):
        reason = "no column is named like a label; first column with only 0 and 1"
        for index, (guess, profile) in enumerate(zip(guesses, profiles, strict=True)):
            if guess.part == "dense" and _is_binary(profile) and profile.ids.num_distinct() > 1:
                guesses[index] = Guess(guess.name, "label", reason)
                break
    return guesses


def make_schema(guesses: Iterable[Guess], *, where: str) -> Schema:
    """Make a schema from guesses.

    Args:
        guesses: Guesses of all columns.
        where: Name of the log in error messages.

    Raises:
        ConfigError: No column looks like a label.
    """
    guesses = list(guesses)
    weights = {dict(guess.options)["of"]: guess.name for guess in guesses if guess.part == "id_weights"}

    def columns(part: Part) -> list[Any]:
        found = []
        for guess in guesses:
            if guess.part == part:
                options = dict(guess.options) | ({"weights": weights[guess.name]} if guess.name in weights else {})
                found.append({"name": guess.name, **options} if options else guess.name)
        return found

    if not columns("label"):
        names = shorten_list(guess.name for guess in guesses)
        raise ConfigError(f"{where}: no column looks like a label (0 and 1), given {names}; write a schema by hand")
    values: dict[str, Any] = {
        "labels": columns("label"),
        "dense": columns("dense"),
        "ids": columns("id"),
        "id_lists": columns("id_list"),
    }
    for part in SINGLE_PARTS:
        if found := columns(part):
            values[part] = found[0]
    return Schema.from_dict(values, where=where)


def parts_of_schema(schema: Schema, names: Iterable[str]) -> list[Guess]:
    """The roles that a schema assigns to columns."""
    parts: dict[str, Part] = {column.name: "label" for column in schema.labels}
    parts |= {column.name: "dense" for column in schema.dense}
    parts |= {column.name: "id" for column in schema.ids}
    parts |= {column.name: "id_list" for column in schema.id_lists}
    parts |= {column.weights: "id_weights" for column in schema.id_lists if column.weights}
    singles: tuple[tuple[str | None, Part], ...] = (
        (schema.timestamp.name if schema.timestamp else None, "timestamp"),
        (schema.session_id, "session_id"),
        (schema.row_id, "row_id"),
        (schema.weight, "weight"),
    )
    parts |= {name: part for name, part in singles if name is not None}
    return [
        Guess(name, parts.get(name, "ignored"), "in the schema" if name in parts else "not in the schema")
        for name in names
    ]


def words_of(name: str) -> list[str]:
    """The words in a column's name: "userId" and "user_id" give ["user", "id"], "C14" gives ["c"]."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+", name)
    return [part.lower() for part in parts if not part.isdigit()]


def _given_label(profile: ColumnProfile) -> Guess:
    """The role of a column that the user says is the label: of clicks if it has only 0 and 1, otherwise a number.

    Raises:
        ConfigError: It is not a number.
    """
    if not profile.num_values or _is_binary(profile):
        return Guess(profile.name, "label", f"the label, as given{_stray(profile)}")
    if profile.kind not in ("int", "float") or profile.min is None or profile.max is None:
        raise ConfigError(
            f"label: given {profile.name!r}, which has type {profile.types[0]}; expected a column of numbers (of CSV "
            "and JSON lines, a condition such as 'rating >= 4' makes one)"
        )
    reason = f"the label, as given; its values from {profile.min:g} to {profile.max:g} are learned as numbers"
    return Guess(profile.name, "label", reason, (("allowed", None),))


def _guess(profile: ColumnProfile, lists: dict[str, ColumnProfile]) -> Guess:
    name, words = profile.name, words_of(profile.name)
    if is_reserved(name):
        return Guess(name, "ignored", "reserved name; rename the column to use it")
    if FRAME_INDEX.fullmatch(name) or (name in ("index", "level_0") and _is_counter(profile)):
        return Guess(name, "ignored", "row number of a DataFrame")
    if profile.num_nulls > profile.num_rows / 2 and any(_is_bytes(kind) for kind in profile.types):
        return Guess(name, "ignored", f"type {profile.types[0]}, binary data that is not text")
    if profile.num_values == 0:
        return Guess(name, "ignored", "only nulls")
    if profile.is_list:
        return _guess_list(profile, lists)
    if profile.kind == "other":
        return Guess(name, "ignored", f"type {profile.types[0]} is not a number, text or list")
    time = _guess_time(profile, words)
    if time is not None:
        return time
    is_name = profile.kind in ("int", "string") or (profile.kind == "float" and profile.is_whole)
    if is_name and SESSION_WORDS & set(words) and set(words) <= SESSION_WORDS | ID_WORDS:
        return Guess(name, "session_id", "named like a session")
    if (
        profile.kind in ("bool", "int", "float")
        and LABEL_WORDS & set(words)
        and not (COUNTING_WORDS | DENSE_WORDS | {"id"}) & set(words)
    ):
        if _is_binary(profile):
            return Guess(name, "label", f"named like a label, with 0 and 1{_stray(profile)}")
        if words in (["label"], ["target"], ["y"]):
            return Guess(name, "label", "named like a label, with numbers other than 0 and 1", (("allowed", None),))
    if profile.kind in ("int", "float") and " ".join(words) in WEIGHT_NAMES and float(profile.min or 0) >= 0:
        return Guess(name, "weight", "named like an example weight, never negative")
    if _is_unique(profile) and profile.kind in ("int", "string"):
        if profile.kind == "int" and not profile.num_nulls and " ".join(words) in ROW_NAMES:
            return Guess(name, "row_id", "named like a row id, different in every row")
        if profile.kind == "string" or words[-1:] == ["id"]:
            return Guess(name, "ignored", "different in every row, so there is nothing to learn")
    if profile.kind == "string":
        return Guess(name, "id", "text", (("type", "string"),))
    return _guess_number(profile, words)


def _guess_list(profile: ColumnProfile, lists: dict[str, ColumnProfile]) -> Guess:
    for name, ids in lists.items():
        named = profile.name in (f"{name}_weights", f"{name}_weight", f"{name}_scores")
        if named and ids.ids.num_values == profile.ids.num_values:
            return Guess(profile.name, "id_weights", f"as many numbers as ids in {name}", (("of", name),))
    if profile.num_null_elements > profile.ids.num_values:
        return Guess(profile.name, "ignored", f"type {profile.types[0]}, most elements are null or not text")
    if profile.kind == "list of int":
        return Guess(profile.name, "id_list", "lists of integers")
    if profile.kind == "list of string":
        return Guess(profile.name, "id_list", "lists of strings", (("type", "string"),))
    return Guess(profile.name, "ignored", f"lists of {profile.kind.removeprefix('list of ')} are not ids")


def _guess_time(profile: ColumnProfile, words: Sequence[str]) -> Guess | None:
    if profile.kind == "time":
        return Guess(profile.name, "timestamp", f"type {profile.types[0]}")
    named = bool(TIME_WORDS & set(words))
    if profile.kind == "string":
        exact = words in (["timestamp"], ["time"], ["datetime"], ["ts"], ["event", "time"])
        return Guess(profile.name, "timestamp", "text, named like a time") if exact else None
    if profile.kind not in ("int", "float") or not profile.is_whole or profile.mean is None:
        return None
    if _is_calendar(profile):
        return Guess(profile.name, "ignored", "numbers like yyyymmddHHMMSS, which have no time unit; store a timestamp")
    for unit, ticks in UNITS.items():
        if EPOCH_RANGE_S[0] * ticks <= profile.mean <= EPOCH_RANGE_S[1] * ticks:
            options = (("unit", unit),)
            if named:
                return Guess(profile.name, "timestamp", f"named like a time, counts {unit} since 1970", options)
            is_id = set(words) & ID_WORDS or (set(words) & SESSION_WORDS and not set(words) & BOUND_WORDS)
            if not is_id and float(profile.min or 0) > 0.5 * profile.mean:
                return Guess(profile.name, "timestamp", f"numbers like {unit} since 1970", options, is_sure=False)
    if words in (["timestamp"], ["ts"], ["event", "time"]):
        return Guess(profile.name, "timestamp", "named like a time; the unit is a guess", (("unit", "ms"),))
    return None


def _is_calendar(profile: ColumnProfile) -> bool:
    """Whether numbers are digits of dates; for dates without a time only if the name suggests it."""
    ends = [profile.min or 0, profile.max or 0]
    return is_calendar(ends) and (max(ends) >= 10**8 or bool(TIME_WORDS & set(words_of(profile.name))))


def _guess_number(profile: ColumnProfile, words: Sequence[str]) -> Guess:
    name, named = profile.name, set(words)
    constant = "; always the same value" if profile.ids.num_distinct() == 1 else ""
    if profile.kind == "float":
        if profile.is_whole and named & SURE_ID_WORDS:  # integers with nulls, written by pandas
            return Guess(name, "id", f"named like an id, integers stored as floats{constant}")
        odd = profile.num_not_finite / profile.num_values
        if odd > MAX_ODD_RATIO:
            return Guess(name, "dense", f"numbers; {odd:.1%} are NaN or infinite, so missing", (("nan", "allow"),))
        return Guess(name, "dense", f"numbers{constant}")
    if profile.kind == "bool":
        return Guess(name, "dense", f"true or false{constant}")
    largest = max(abs(profile.min or 0), abs(profile.max or 0))
    if _is_binary(profile):
        return Guess(name, "dense", f"only 0 and 1{constant}")
    # The last meaningful word decides: an "age group" is a group, an "item price" a price.
    if "last" in words[1:]:  # "clicks_last_hour" is a count, "last_item" an item
        return Guess(name, "dense", f"named like a number{constant}")
    telling = [word for word in words if word in DENSE_WORDS | ID_WORDS]
    if not named & SURE_ID_WORDS and (named & COUNTING_WORDS or (telling[-1:] and telling[-1] in DENSE_WORDS)):
        return Guess(name, "dense", f"named like a number{constant}")
    if telling:
        return Guess(name, "id", f"named like an id{constant}")
    if profile.is_dictionary:
        return Guess(name, "id", f"dictionary-encoded{constant}")
    if largest >= 2**31:
        return Guess(name, "id", f"integers of more than 32 bits, like hashes{constant}")
    distinct = profile.ids.num_distinct()
    if distinct >= 100 and float(profile.min or 0) >= 0 and largest < 1.5 * distinct:
        return Guess(name, "id", "consecutive integers from 0 with few gaps, like codes")
    return Guess(name, "dense", f"integers{constant}")


def _is_binary(profile: ColumnProfile) -> bool:
    """Whether a column contains only 0 and 1, except for a few values that the bad-row checks will report."""
    if profile.kind not in ("bool", "int", "float") or not profile.num_values:
        return False
    return profile.num_zero_or_one >= 0.99 * profile.num_values


def _stray(profile: ColumnProfile) -> str:
    others = profile.num_values - profile.num_zero_or_one
    return f" (except in {others:,} rows)" if others else ""


def _is_counter(profile: ColumnProfile) -> bool:
    """Whether a column counts rows, possibly restarting in each file."""
    return profile.kind == "int" and profile.min in (0, 1) and profile.num_backward <= 0.01 * profile.num_values


def _is_bytes(kind: pa.DataType) -> bool:
    kinds = (pt.is_binary, pt.is_large_binary, pt.is_binary_view, pt.is_fixed_size_binary)
    return any(is_kind(kind) for is_kind in kinds)


def _is_unique(profile: ColumnProfile) -> bool:
    if profile.num_values < MIN_ROWS_FOR_UNIQUE:
        return False
    return profile.ids.num_distinct() >= profile.num_values * (1.0 if profile.ids.is_exact else 0.975)
