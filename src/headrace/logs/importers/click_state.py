"""Features of a click from earlier clicks: the user's history, the session's items, last hour's counts, candidates.

There is no look-ahead: histories and counts contain only clicks strictly before the click.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.logs.importers.id_index import IdIndex
from headrace.logs.keyed_random import derive

__all__ = ["LATE_HOURS", "Candidates", "ClickState", "JaggedIds"]

Ints = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.int32]

LATE_HOURS = 24
"""Maximum hours by which a file may start before the latest start so far. If an hour has few sessions, its first click
may be hours late, so files do not start strictly in order; counts of the last hour stay exact."""

DRAWS = 64
"""Maximum consecutive draws of the clicked item. An item with 90 % of an hour's clicks is drawn this often in a row
once in a thousand times."""

SPARE_HISTORY = 14
"""Extra capacity of a user's history. A session that extends past its file leaves clicks in the future of the next
file's clicks. Up to this many do not affect a history; with more it is shorter, but never wrong."""


@dataclass(frozen=True)
class JaggedIds:
    """Lists of item ids: `values[offsets[i]:offsets[i + 1]]` is list i.

    Attributes:
        offsets: i32[N + 1].
        values: i64[offsets[N]].
    """

    offsets: Numbers
    values: Ints


@dataclass(frozen=True)
class Candidates:
    """The items shown at each click: the clicked item among negatives.

    Attributes:
        click: i64[rows], index of the click in the hour; non-decreasing.
        slot: i64[rows], 0..negatives, position among the click's candidates.
        label: i8[rows], 1 for the clicked item.
        item: i64[rows], item id.
        last_hour: i64[rows], clicks on the item in the hour before the click, without the click that it was drawn from.
    """

    click: Ints
    slot: Ints
    label: npt.NDArray[np.int8]
    item: Ints
    last_hour: Ints


class ClickState:
    """The state between hours, a function of the clicks added so far, so that it can be rebuilt.

    Call `start_hour` for each hour in order; `session_items` and `candidates` then refer to the clicks of that hour. An
    hour may start up to `LATE_HOURS` before the latest start so far.

    Args:
        history_length: Maximum items in a history.
        ticks_per_hour: Timestamp ticks per hour.
    """

    def __init__(self, *, history_length: int, ticks_per_hour: int) -> None:
        self._length = history_length
        self._hour = ticks_per_hour
        self._items, self._users = IdIndex(), IdIndex()
        width = history_length + SPARE_HISTORY
        self._history_items = np.empty((1 << 10, width), np.int32)
        self._history_times = np.empty((1 << 10, width), np.int64)
        self._history_sizes = np.zeros(1 << 10, np.int32)
        self._recent_times, self._recent_items = np.empty(0, np.int64), np.empty(0, np.int32)
        self._latest_start = -(2**62)
        self._pool = np.empty(0, np.int32)  # the previous hour's clicked items, sorted
        self._times, self._numbers = np.empty(0, np.int64), np.empty(0, np.int32)

    @property
    def has_pool(self) -> bool:
        """Whether there was an earlier hour with clicks, from which negatives can be drawn."""
        return len(self._pool) > 0

    def start_hour(self, times: Ints, users: Ints, items: Ints) -> JaggedIds:
        """Add the clicks of an hour, in time order; returns the history of each, oldest first."""
        if len(self._numbers):
            self._pool = np.sort(self._numbers)
        if len(times) == 0:
            self._numbers = np.empty(0, np.int32)
            return JaggedIds(np.zeros(1, np.int32), np.empty(0, np.int64))
        numbers = self._items.add(items)
        self._times, self._numbers = times, numbers
        self._latest_start = max(self._latest_start, int(times[0]))
        keep = self._recent_times >= self._latest_start - (LATE_HOURS + 1) * self._hour
        recent_times = np.concatenate([self._recent_times[keep], times])
        recent_items = np.concatenate([self._recent_items[keep], numbers])
        order = np.argsort(recent_times, kind="stable")
        self._recent_times, self._recent_items = recent_times[order], recent_items[order]

        user_numbers = self._users.add(users)
        self._make_room(len(self._users))
        offsets = np.zeros(len(times) + 1, np.int32)
        values = np.empty(len(times) * self._length, np.int32)
        _roll_histories(
            times,
            user_numbers,
            numbers,
            self._history_items,
            self._history_times,
            self._history_sizes,
            self._length,
            offsets,
            values,
        )
        return JaggedIds(offsets, self._items.ids[values[: offsets[-1]]])

    def session_items(self, sessions: Ints) -> JaggedIds:
        """The items clicked earlier in this hour in each click's session, oldest first."""
        order = np.argsort(sessions, kind="stable")
        first = np.empty(len(order), np.int64)
        offsets = np.zeros(len(order) + 1, np.int32)
        _count_earlier(sessions, self._times, order, first, offsets)
        np.cumsum(offsets, out=offsets)
        values = np.empty(offsets[-1], np.int32)
        _gather_earlier(self._numbers, order, first, offsets, values)
        return JaggedIds(offsets, self._items.ids[values])

    def candidates(self, negatives: int, hour_key: np.uint64, *, uniform: bool = False) -> Candidates:
        """Draw negatives from the clicks of the previous 60 minutes, and insert the clicked item at a random position.

        Args:
            negatives: Number of negatives per click.
            hour_key: Random key of the hour.
            uniform: Whether to draw uniformly from the items of the previous 24 hours instead.
        """
        rows = len(self._times) * (negatives + 1)
        click, slot = np.empty(rows, np.int64), np.empty(rows, np.int64)
        label, item, last_hour = np.empty(rows, np.int8), np.empty(rows, np.int32), np.empty(rows, np.int64)
        filled = _draw_candidates(
            hour_key,
            negatives,
            uniform,
            self._times,
            self._numbers,
            np.unique(self._pool) if uniform else self._pool,
            self._recent_times,
            self._recent_items,
            self._hour,
            np.zeros(len(self._items), np.int64),
            np.zeros(len(self._items), np.int64),
            np.empty(len(self._items), np.int32),
            np.empty(len(self._items), np.int32),
            click,
            slot,
            label,
            item,
            last_hour,
        )
        ids = self._items.ids[item[:filled]]
        return Candidates(click[:filled], slot[:filled], label[:filled], ids, last_hour[:filled])

    def _make_room(self, num_users: int) -> None:
        have, width = self._history_items.shape
        if num_users <= have:
            return
        size = max(num_users, 2 * have)
        items, times = np.empty((size, width), np.int32), np.empty((size, width), np.int64)
        sizes = np.zeros(size, np.int32)
        items[:have], times[:have], sizes[:have] = self._history_items, self._history_times, self._history_sizes
        self._history_items, self._history_times, self._history_sizes = items, times, sizes


@kernel()
def _roll_histories(
    times: Ints,
    users: Numbers,
    items: Numbers,
    history_items: Numbers,
    history_times: Ints,
    sizes: Numbers,
    length: int,
    offsets: Numbers,
    values: Numbers,
) -> None:
    """Write each click's history, then add the click to it, in time order."""
    width = history_items.shape[1]
    at = 0
    for i in range(len(times)):
        user = users[i]
        size = sizes[user]
        stop = size  # entries before the click
        while stop > 0 and history_times[user, stop - 1] >= times[i]:
            stop -= 1
        for k in range(max(0, stop - length), stop):
            values[at] = history_items[user, k]
            at += 1
        offsets[i + 1] = at

        place = stop  # after clicks at the same time
        while place < size and history_times[user, place] == times[i]:
            place += 1
        if size == width:
            if place == 0:
                continue  # older than all stored clicks
            for k in range(place - 1):
                history_items[user, k] = history_items[user, k + 1]
                history_times[user, k] = history_times[user, k + 1]
            place -= 1
        else:
            for k in range(size, place, -1):
                history_items[user, k] = history_items[user, k - 1]
                history_times[user, k] = history_times[user, k - 1]
            sizes[user] = size + 1
        history_items[user, place] = items[i]
        history_times[user, place] = times[i]


@kernel()
def _count_earlier(sessions: Ints, times: Ints, order: Ints, first: Ints, offsets: Numbers) -> None:
    """For each click: the start of its session in `order`, and (in `offsets[click + 1]`) the number of earlier
    clicks."""
    start, earlier = 0, 0
    for p in range(len(order)):
        i = order[p]
        if p == 0 or sessions[order[p - 1]] != sessions[i]:
            start, earlier = p, 0
        elif times[order[p - 1]] < times[i]:
            earlier = p - start
        first[i] = start
        offsets[i + 1] = earlier


@kernel()
def _gather_earlier(items: Numbers, order: Ints, first: Ints, offsets: Numbers, values: Numbers) -> None:
    for i in range(len(order)):
        for k in range(offsets[i + 1] - offsets[i]):
            values[offsets[i] + k] = items[order[first[i] + k]]


@kernel()
def _draw_candidates(
    hour_key: np.uint64,
    negatives: int,
    uniform: bool,
    times: Ints,
    items: Numbers,
    pool: Numbers,
    recent_times: Ints,
    recent_items: Numbers,
    hour: int,
    counts: Ints,
    of_day: Ints,
    distinct: Numbers,
    places: Numbers,
    click: Ints,
    slot: Ints,
    label: npt.NDArray[np.int8],
    item: Numbers,
    last_hour: Ints,
) -> int:
    """Fill the rows of each click; returns the number of rows.

    A negative is drawn from the clicks that are counted, those of the previous hour, on another item. If drawn from an
    older period it would have fewer clicks in that hour than the clicked item, and the count would reveal the label.
    Its own click is excluded from its count, like the clicked item's click, because otherwise no negative would have a
    count of 0. If that hour has no other item, the pool is used; if the pool has none either, the click has no
    negatives.

    Args:
        uniform: Whether to draw uniformly from the items clicked in the previous day and from those of the pool.
        counts: i64[items], initially zero: clicks of the previous hour by item.
        of_day: i64[items], initially zero: clicks of the previous day by item.
        distinct: i32[items], output: the items with clicks in that day ...
        places: i32[items], output: ... and the position of each in `distinct`.
    """
    row, oldest, oldest_of_day, newest, num_distinct = 0, 0, 0, 0, 0
    for i in range(len(times)):
        while recent_times[newest] < times[i]:  # ends at click i itself at the latest
            entering = recent_items[newest]
            if of_day[entering] == 0:
                distinct[num_distinct], places[entering] = entering, num_distinct
                num_distinct += 1
            counts[entering] += 1
            of_day[entering] += 1
            newest += 1
        while recent_times[oldest] < times[i] - hour:
            counts[recent_items[oldest]] -= 1
            oldest += 1
        while recent_times[oldest_of_day] < times[i] - LATE_HOURS * hour:
            leaving = recent_items[oldest_of_day]
            of_day[leaving] -= 1
            if of_day[leaving] == 0:
                num_distinct -= 1
                moved = distinct[num_distinct]
                distinct[places[leaving]], places[moved] = moved, places[leaving]
            oldest_of_day += 1
        begin = np.searchsorted(pool, items[i])
        end = np.searchsorted(pool, items[i], side="right")
        pool_others = len(pool) - (end - begin)
        others = newest - oldest - counts[items[i]]
        if uniform:
            others = num_distinct - (of_day[items[i]] > 0)
        drawn = negatives if others > 0 or pool_others > 0 else 0
        key = derive(hour_key, i)
        place = _below(derive(key, -1), drawn + 1)
        for k in range(drawn + 1):
            own = 0
            if k == place:
                item[row] = items[i]
            elif others <= 0:
                pick = _below(derive(key, k), pool_others)
                item[row] = pool[pick if pick < begin else pick + (end - begin)]
            elif uniform:
                pick = _below(derive(key, k), others)
                passed = of_day[items[i]] > 0 and pick >= places[items[i]]
                item[row] = distinct[pick + 1 if passed else pick]
            else:
                item[row], own = _draw_click(derive(key, k), recent_items[oldest:newest], items[i]), 1
            click[row] = i
            slot[row] = k
            label[row] = k == place
            last_hour[row] = counts[item[row]] - own
            row += 1
    return row


@kernel()
def _below(random: np.uint64, bound: int) -> Any:
    """Map a random number to 0..bound - 1."""
    return np.int64((random >> np.uint64(32)) * np.uint64(bound) >> np.uint64(32))


@kernel()
def _draw_click(key: np.uint64, items: Numbers, clicked: int) -> Any:
    """The item of a uniformly drawn click on another item than the clicked one; there must be one."""
    pick = 0
    for attempt in range(DRAWS):
        pick = _below(derive(key, attempt), len(items))
        if items[pick] != clicked:
            return items[pick]
    while items[pick] == clicked:  # hardly anything else was clicked: take the next other one
        pick = (pick + 1) % len(items)
    return items[pick]
