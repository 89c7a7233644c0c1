"""Finds columns that contain the same ids (an item, the items clicked before) and can share an embedding table.

Equal values are not sufficient: codes that start at 0 overlap with any other such codes. Two columns contain the same
ids if at least half of the ids of one occur in the other, and one of these is evidence for it:

- *values*: far fewer of the adjacent ids (plus one, minus one, ...) occur in the other. With codes without gaps,
  adjacent ids occur equally often. Strings other than numerals have no adjacent values, so equal ones are sufficient;
- *counts*: ids that are frequent in one are frequent in the other, more than adjacent ids (not used if a column is only
  numbered, such as C14, because it may contain anything);
- *names*: both have the same subject, or one is a list called just "history" and there is one item column.

Columns with fewer than 50 ids (an hour, a kind of device) need no common table, because each id has many rows to learn
from.

The ids are those kept by the counters of the columns, see `IdCounter`: all ids, or a sample by hash, which is the same
in every column. So nothing is read again, and no more memory is needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from headrace.logs.inspection.guesses import Guess, word_set, words_of
from headrace.logs.inspection.hashing import Hashes, hash_integers, integers_of
from headrace.logs.inspection.profiles import ColumnProfile

__all__ = ["Overlap", "find_overlaps", "shared_tables"]

MIN_IDS = 50
"""Minimum number of ids of the smaller column."""

MIN_SAMPLED = 25
"""Minimum number of sampled ids of the smaller column."""

MIN_RATIO = 0.5
"""Minimum share of the smaller column's ids that occur in the larger one."""

MIN_RATIO_BY_NAME = 0.9
"""Minimum share if only one of the two names identifies the ids."""

MIN_ABOVE_CHANCE = 0.3
"""Minimum excess of the share of common ids over that of adjacent ids: three standard errors for 50 ids."""

NUM_NEIGHBOURS = 8
"""Number of adjacent ids on each side of an id."""

MAX_COMPARED = 4_096
"""Maximum number of ids of the smaller column that are looked up in the larger one."""

MAX_COLUMNS = 256
"""Maximum number of columns compared, those with most ids; comparing all pairs takes seconds."""

LIST_WORDS = word_set(
    "history hist list seq sequence recent past last prev previous earlier clicked clicks click viewed views view "
    "watched bought purchased liked rated visited seen session user positive pos"
)
"""Words in the name of a list that do not identify its ids."""

NO_NAME_WORDS = word_set("id ids uid uuid key hash code idx index candidate target current first next")

ITEM_WORDS = word_set(
    "item article ad product movie film video song track music news doc document post book game app creative sku offer "
    "listing hotel poi photo story content page candidate target"
)

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Overlap:
    """Two columns with many ids in common.

    Attributes:
        columns: The column with fewer ids, and the other column.
        num_ids: Number of distinct ids of the first column; estimated if there are very many.
        ratio: Share of these ids that also occur in the second column.
        chance: The same share for adjacent ids; None for strings, which have no adjacent values.
        evidence: Evidence that the ids are the same; None if there is none.
        reason: The evidence in words.
    """

    columns: tuple[str, str]
    num_ids: int
    ratio: float
    chance: float | None
    evidence: Literal["values", "counts", "names"] | None
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Column:
    """The ids of a column, sorted by hash: all of them, or those whose hash begins with `level` zeros."""

    name: str
    is_list: bool
    is_text: bool
    is_numeral: bool
    num_ids: int
    level: int
    hashes: Hashes
    counts: Counts

    def at_level(self, level: int) -> tuple[Hashes, Counts]:
        """The ids whose hash starts with at least `level` zeros."""
        stop = len(self.hashes) if not level else int(np.searchsorted(self.hashes, np.uint64(1 << (64 - level))))
        return self.hashes[:stop], self.counts[:stop]


def find_overlaps(profiles: Sequence[ColumnProfile], guesses: Sequence[Guess]) -> list[Overlap]:
    """Find pairs of id columns in which at least half of one column's ids occur in the other, in column order.

    Args:
        profiles: Profiles of all columns.
        guesses: Roles of the columns; ids and lists of ids of the same type are compared.
    """
    columns = [
        _column(profile)
        for profile, guess in zip(profiles, guesses, strict=True)
        if guess.part in ("id", "id_list") and profile.ids.num_distinct() >= MIN_IDS
    ]
    most = {column.name for column in sorted(columns, key=lambda column: -column.num_ids)[:MAX_COLUMNS]}
    columns = [column for column in columns if column.name in most]
    items = {column.name: _thing(column.name, is_list=False) for column in columns if not column.is_list}
    items = {name: thing for name, thing in items.items() if thing in ITEM_WORDS}
    one_thing = list(items) if len(set(items.values())) == 1 else []
    found = (_compare(a, b, one_thing) for a, b in combinations(columns, 2) if a.is_text == b.is_text)
    return [overlap for overlap in found if overlap is not None]


def shared_tables(overlaps: Sequence[Overlap], order: Sequence[str]) -> list[tuple[str, ...]]:
    """Groups of columns that should share an embedding table; other columns are omitted.

    Args:
        overlaps: Result of `find_overlaps`.
        order: Names of all columns, which determine the order within a group.
    """
    table_of: dict[str, set[str]] = {}
    for overlap in overlaps:
        if overlap.evidence is not None:
            joined = set().union(*(table_of.get(name, {name}) for name in overlap.columns))
            table_of |= dict.fromkeys(joined, joined)
    tables = [tuple(name for name in order if name in table) for table in table_of.values()]
    return sorted(set(tables), key=lambda table: order.index(table[0]))


def _column(profile: ColumnProfile) -> _Column:
    hashes, counts = profile.ids.sample()
    order = np.argsort(hashes)
    return _Column(
        profile.name,
        profile.is_list,
        profile.kind.endswith("string"),
        profile.is_numeral,
        round(profile.ids.num_distinct()),
        profile.ids.level,
        hashes[order],
        counts[order],
    )


def _compare(a: _Column, b: _Column, items: Sequence[str]) -> Overlap | None:
    """The overlap of two columns; None if it is too small, or their samples are."""
    level = max(a.level, b.level)
    first, second = (a, b) if a.num_ids <= b.num_ids else (b, a)
    (ids, counts), (others, other_counts) = first.at_level(level), second.at_level(level)
    ids, counts = ids[:MAX_COMPARED], counts[:MAX_COMPARED]
    if len(ids) < MIN_SAMPLED or len(others) < MIN_SAMPLED:
        return None
    names = first.name, second.name
    places, is_there = _look_up(ids, others)
    ratio = float(is_there.mean())
    if ratio < MIN_RATIO:
        return None
    chance: float | None = None
    evidence: Literal["values", "counts", "names"] | None = None
    if not first.is_text:
        neighbours, of = _neighbours(ids, others, level)
        next_places, next_there = _look_up(neighbours, others)
        chance = float(next_there.mean()) if len(neighbours) else 0.0
        by_counts = _correlation(counts[is_there], other_counts[places[is_there]])
        next_counts = _correlation(counts[of[next_there]], other_counts[next_places[next_there]])
        margin = max(MIN_ABOVE_CHANCE, 4.0 / np.sqrt(max(1, int(is_there.sum()))))
        if ratio - chance >= MIN_ABOVE_CHANCE:
            evidence, reason = "values", "far more than of the ids next to them"
        elif by_counts - max(0.0, next_counts) >= margin and not any(_is_numbered(name) for name in names):
            evidence, reason = "counts", "the same ids are frequent in both"
    elif not (first.is_numeral and second.is_numeral):
        evidence, reason = "values", "equal texts"
    if evidence is None:
        thing = _common_thing(first, second, ratio, items)
        evidence = None if thing is None else "names"
        reason = "codes that overlap by themselves" if thing is None else f"both are ids of {thing}, by their names"
    return Overlap(names, first.num_ids, ratio, chance, evidence, reason)


def _look_up(ids: Hashes, others: Hashes) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
    """Positions of ids among others, which are sorted, and whether they are present."""
    places = np.minimum(np.searchsorted(others, ids), len(others) - 1)
    return places, others[places] == ids


def _neighbours(ids: Hashes, others: Hashes, level: int) -> tuple[Hashes, npt.NDArray[np.intp]]:
    """Hashes of the integers adjacent to some ids that would be in the sample, with the id of each.

    Adjacent numbers differ by the greatest common divisor of all differences, because codes may be multiples of ten.
    """
    numbers, of = integers_of(ids), np.arange(len(ids))
    values = np.sort(np.concatenate([numbers, integers_of(others)]))
    step = np.gcd.reduce(np.diff(values.view(np.uint64)))
    num_neighbours = NUM_NEIGHBOURS << min(level, 6)  # of which 1 in 2 ** level is in the sample
    shifts = np.arange(1, num_neighbours + 1, dtype=np.uint64) * max(step, np.uint64(1))
    beside = np.concatenate(
        [numbers.view(np.uint64)[:, None] + shifts, numbers.view(np.uint64)[:, None] - shifts], axis=1
    )
    hashes = hash_integers(beside.ravel().view(np.int64))
    of = np.repeat(of, 2 * num_neighbours)
    kept = hashes >> np.uint64(64 - level) == 0 if level else np.ones(len(hashes), dtype=np.bool_)
    return hashes[kept], of[kept]


def _correlation(a: Counts, b: Counts) -> float:
    """Correlation of the logarithms of counts; 0 if it is undefined."""
    if len(a) < MIN_SAMPLED:
        return 0.0
    x, y = np.log(a), np.log(b)
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 1e-9 else 0.0


def _common_thing(a: _Column, b: _Column, ratio: float, items: Sequence[str]) -> str | None:
    """The common subject of two column names, for instance "item" for item_id and last_items; None if there is none."""
    things = [_thing(column.name, is_list=column.is_list) for column in (a, b)]
    if things[0] and things[0] == things[1]:
        return things[0]
    # A list called "history" contains items, if only one column can be the item column.
    lists = [column for column, thing in zip((a, b), things, strict=True) if column.is_list and thing == ""]
    singles = [column.name for column in (a, b) if not column.is_list]
    if len(lists) == 1 and len(singles) == 1 and singles[0] in items and ratio >= MIN_RATIO_BY_NAME:
        return _thing(singles[0], is_list=False)
    return None


def _thing(name: str, *, is_list: bool) -> str | None:
    """The last word that identifies the ids of a column; "" if there is none, None for numbered names such as C14."""
    if _is_numbered(name):
        return None
    words = list(_plain_words(name))
    telling = [word for word in words if word not in NO_NAME_WORDS and word not in LIST_WORDS]
    if telling:
        return telling[-1]
    if is_list:
        return ""
    return next((word for word in reversed(words) if word in ITEM_WORDS or word == "user"), None)


def _is_numbered(name: str) -> bool:
    return re.search(r"[0-9]", name) is not None


def _plain_words(name: str) -> Iterator[str]:
    for word in words_of(name):
        if len(word) > 4 and word.endswith("ies"):
            yield f"{word[:-3]}y"  # categories
        elif len(word) > 2 and word.endswith("s") and not word.endswith("ss") and word not in LIST_WORDS | {"news"}:
            yield word[:-1]
        else:
            yield word
