"""What earlier clicks say about a click: the user's history, the session's items, the last hour's counts, candidates.

Nothing here looks ahead: histories and counts hold only clicks strictly before the click they describe.
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
"""How far before the latest start of a file another may start. Where an hour has hardly any sessions its first click
may come hours late, so files do not start strictly one after the other; counts of the last hour stay exact."""

DRAWS = 64
"""An item with nine in ten clicks of an hour is drawn so often in a row once in a thousand times."""

SPARE_HISTORY = 14
"""Places of a user's history beyond those shown. A session that runs on past its file leaves clicks that lie in the
future of the next file's; up to this many of them cost a history nothing, with more it is shorter, never wrong."""


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
    """The items shown at each click: the clicked one among the negatives.

    Attributes:
        click: i64[rows], number of the click in the hour; never decreasing.
        slot: i64[rows], 0..negatives, place among the click's candidates.
        label: i8[rows], 1 for the clicked item.
        item: i64[rows], item id.
        last_hour: i64[rows], clicks on the item in the hour before the click, without the one it was drawn by.
    """

    click: Ints
    slot: Ints
    label: npt.NDArray[np.int8]
    item: Ints
    last_hour: Ints


class ClickState:
    """Everything remembered from hour to hour: a function of the clicks taken in so far, so it can be rebuilt.

    Call `start_hour` for each hour in turn; `session_items` and `candidates` then tell about the clicks of that hour.
    An hour may start up to `LATE_HOURS` before the latest start so far.

    Args:
        history_length: Most items in a history.
        ticks_per_hour: Units of the timestamps in an hour.
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
        """Whether an hour with clicks came before the present one, to draw negatives from."""
        return len(self._pool) > 0

    def start_hour(self, times: Ints, users: Ints, items: Ints) -> JaggedIds:
        """Take in the clicks of an hour, in order of time; return each one's history, oldest first."""
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
        """The items each click's session clicked before it in this hour, oldest first."""
        order = np.argsort(sessions, kind="stable")
        first = np.empty(len(order), np.int64)
        offsets = np.zeros(len(order) + 1, np.int32)
        _count_earlier(sessions, self._times, order, first, offsets)
        np.cumsum(offsets, out=offsets)
        values = np.empty(offsets[-1], np.int32)
        _gather_earlier(self._numbers, order, first, offsets, values)
        return JaggedIds(offsets, self._items.ids[values])

    def candidates(self, negatives: int, hour_key: np.uint64, *, uniform: bool = False) -> Candidates:
        """Draw negatives from the clicks of the 60 minutes before, and put the clicked item anywhere among them.

        Args:
            negatives: How many for each click.
            hour_key: Decides the draws.
            uniform: Whether to draw from the items of the 24 hours before instead, each as likely as any other.
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
    """Write each click's history, then add the click to it; a history is kept in order of time."""
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

        place = stop  # behind clicks at the same moment
        while place < size and history_times[user, place] == times[i]:
            place += 1
        if size == width:
            if place == 0:
                continue  # older than everything remembered
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
    """For each click: where its session starts in `order`, and (in `offsets[click + 1]`) how many are earlier."""
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
    """Fill the rows of each click; return how many there are.

    A negative is one of the clicks that counts are of, those of the hour before, on another item. From an older stretch
    it would have fewer clicks in that hour than the clicked item, and the count would tell them apart. It is left out
    of its own count, as the clicked item's click is: no negative had a count of 0 otherwise. Where that hour holds no
    other item, the pool is drawn from; where that does not either, the click stands alone.

    Args:
        uniform: Whether to draw from the items clicked in the day before, each alike, and from those of the pool.
        counts: i64[items], zeros: clicks of the hour before by item.
        of_day: i64[items], zeros: the same of the day before.
        distinct: i32[items], to be filled: the items with clicks in that day ...
        places: i32[items], ... and where each of them stands in it.
    """
    row, oldest, oldest_of_day, newest, num_distinct = 0, 0, 0, 0, 0
    for i in range(len(times)):
        while recent_times[newest] < times[i]:  # ends at the latest at click i itself
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
    """A random number as one of 0..bound - 1."""
    return np.int64((random >> np.uint64(32)) * np.uint64(bound) >> np.uint64(32))


@kernel()
def _draw_click(key: np.uint64, items: Numbers, clicked: int) -> Any:
    """The item of a click drawn uniformly among those on other items than the one clicked, of which there is one."""
    pick = 0
    for attempt in range(DRAWS):
        pick = _below(derive(key, attempt), len(items))
        if items[pick] != clicked:
            return items[pick]
    while items[pick] == clicked:  # hardly anything else was clicked: the next other one
        pick = (pick + 1) % len(items)
    return items[pick]
