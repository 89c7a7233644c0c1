"""Generates feature columns of synthetic rows; each adds its contribution to the teacher's logit."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.logs.generate.popularity import Popularity, draw_slot
from headrace.logs.keyed_random import derive, gaussian, mix, uniform

__all__ = [
    "Era",
    "add_cross",
    "add_product",
    "advance_versions",
    "count_shifts",
    "derive_all",
    "derive_rows",
    "draw_labels",
    "draw_slots",
    "fill_dense",
    "fill_drawn_ids",
    "fill_item_lists",
    "fill_lists",
    "fill_replaced_ids",
    "user_side_keys",
]

Bits = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# Keys of a user's list other than positions.
_LENGTH, _ROUND = 1 << 40, (1 << 40) + 1
_RENEWED = 1 << 41


class Era(NamedTuple):
    """Parameters that vary by window.

    Attributes:
        window: Number of the window.
        new_ids_ratio: Share of ids replaced per window.
        drift_ratio: Share of hidden effects drawn anew per window.
    """

    window: int
    new_ids_ratio: float
    drift_ratio: float


@kernel()
def hidden_effect(salt: np.uint64, which: int, era: Era) -> float:
    """The effect of an id, with mean 0 and variance 1, drawn from its hash, and redrawn when the id drifts."""
    key = derive(salt, which)
    turn = int(np.floor(era.window * era.drift_ratio + uniform(key)))
    return gaussian(derive(key, turn))


@kernel()
def id_alive(salt: np.uint64, slot: int, size: int, window: int, new_ids_ratio: float) -> int:
    """The id in a slot of a column in a window; each slot gets a new id after 1 / new_ids_ratio windows."""
    return slot + size * int(np.floor(window * new_ids_ratio + uniform(derive(salt, slot))))


@kernel()
def advance_versions(
    row_keys: Bits,
    session: Ints,
    position: Ints,
    change_ratios: Floats,
    renewal_ratio: float,
    state: npt.NDArray[np.int32],
    versions: npt.NDArray[np.int32],
    renewals: npt.NDArray[np.int32],
) -> None:
    """Count how often each group of user-side columns has changed in its session; rows must be in time order.

    Args:
        row_keys: u64[N].
        session: i64[N].
        position: i64[N], position within the session.
        change_ratios: f64[G], probability of a change from row to row.
        renewal_ratio: Share of changes that bring entirely new lists.
        state: i32[sessions, G, 2], changes and renewals so far, kept between calls.
        versions: i32[G, N], output: changes.
        renewals: i32[G, N], output: renewals.
    """
    for i in range(len(session)):
        for g in range(versions.shape[0]):
            if position[i] > 0 and uniform(derive(row_keys[i], 100 + g)) < change_ratios[g]:
                state[session[i], g, 0] += 1
                state[session[i], g, 1] += uniform(derive(row_keys[i], _RENEWED + g)) < renewal_ratio
            versions[g, i] = state[session[i], g, 0]
            renewals[g, i] = state[session[i], g, 1]


@kernel()
def fill_replaced_ids(
    salt: np.uint64, slots: Ints, size: int, era: Era, weight: float, ids: Ints, logit: Floats
) -> None:
    """Fill a column of users or items with the ids of the drawn slots."""
    for i in range(len(slots)):
        ids[i] = id_alive(salt, slots[i], size, era.window, era.new_ids_ratio)
        logit[i] += weight * hidden_effect(salt, ids[i], era)


@kernel()
def user_side_keys(
    salt: np.uint64, user_ids: Ints, session_keys: Bits, versions: npt.NDArray[np.int32], keys: Bits
) -> None:
    """Keys for drawing a user-side column: the user's key until the column first changes in a session."""
    for i in range(len(user_ids)):
        if versions[i] == 0:
            keys[i] = derive(derive(salt, user_ids[i]), 1)
        else:
            keys[i] = derive(derive(salt ^ session_keys[i], versions[i]), 2)


@kernel()
def derive_all(salt: np.uint64, which: Ints, keys: Bits) -> None:
    """`keys[i] = derive(salt, which[i])`."""
    for i in range(len(which)):
        keys[i] = derive(salt, which[i])


@kernel()
def derive_rows(session_keys: Bits, position: Ints, row_keys: Bits) -> None:
    """The key of each row, from its session's and its position in the session."""
    for i in range(len(position)):
        row_keys[i] = derive(derive(session_keys[i], 4), position[i])


@kernel()
def fill_drawn_ids(
    keys: Bits, popularity: Popularity, column: int, salt: np.uint64, era: Era, weight: float, ids: Ints, logit: Floats
) -> None:
    """Fill a column of segments or categories: a fixed set of ids, drawn by popularity."""
    for i in range(len(keys)):
        ids[i] = draw_slot(popularity, column, keys[i])
        logit[i] += weight * hidden_effect(salt, ids[i], era)


@kernel()
def fill_dense(keys: Bits, column: int, weight: float, values: npt.NDArray[np.float32], logit: Floats) -> None:
    """Fill a dense column: even columns are nearly normal, odd ones are long-tailed counts whose log1p is nearly
    normal.

    The teacher uses the visible value: x, or log1p(x) - 2; in every fourth column its square.
    """
    for i in range(len(keys)):
        x = gaussian(keys[i])
        if column % 2 == 0:
            values[i] = np.round(x, 3)
            seen = np.float64(values[i])
        else:
            values[i] = np.floor(np.exp(x + 2.0))
            seen = np.log1p(np.float64(values[i])) - 2.0
        if column % 4 == 2:
            seen = (seen * seen - 1.0) * 0.7071067811865476
        logit[i] += weight * seen


@kernel()
def fill_lists(
    salt: np.uint64,
    item_salt: np.uint64,
    user_ids: Ints,
    shift: Ints,
    versions: npt.NDArray[np.int32],
    renewals: npt.NDArray[np.int32],
    session_keys: Bits,
    popularity: Popularity,
    item_column: int,
    mean_length: float,
    max_length: int,
    shifts_per_window: int,
    era: Era,
    weight: float,
    offsets: npt.NDArray[np.int32],
    values: Ints,
    logit: Floats,
    pooled: Floats,
) -> None:
    """Fill an id list: a slice of the infinite sequence of ids that the user sees, newest last.

    Position n of a user's sequence is a function of only the user and n. So a list that shifts by one drops its oldest
    id and gains a newer one, without state between rows. A renewed list is a slice of a different sequence, specific to
    its session.

    Args:
        shift: i64[N], number of ids that the user had seen before the session.
        versions: i32[N], number of further ids since then.
        renewals: i32[N], number of renewals of the list in its session.
        offsets: i32[N + 1], output.
        values: i64[at least N * max_length], output up to offsets[N].
        pooled: f64[N], output: the sum of the ids' effects divided by sqrt(mean length).
    """
    size = popularity.start[item_column + 1] - popularity.start[item_column]
    scale = 1.0 / np.sqrt(max(mean_length, 1.0))
    at = 0
    offsets[0] = 0
    for i in range(len(user_ids)):
        user_key = derive(salt, user_ids[i])
        length = 0
        if mean_length > 0.0:  # rounding an exponential at random keeps the mean
            u = 1.0 - uniform(derive(user_key, _LENGTH))
            length = min(max_length, int(np.floor(-np.log(u) * mean_length + uniform(derive(user_key, _ROUND)))))
        stop = shift[i] + versions[i] + max_length
        if renewals[i] > 0:
            user_key = derive(user_key ^ session_keys[i], _RENEWED + renewals[i])
        total = 0.0
        for n in range(stop - length, stop):
            met_in = min(max((n - max_length) // shifts_per_window, 0), era.window)
            slot = draw_slot(popularity, item_column, derive(user_key, n))
            values[at] = id_alive(item_salt, slot, size, met_in, era.new_ids_ratio)
            total += hidden_effect(salt, values[at], era)
            at += 1
        offsets[i + 1] = at
        pooled[i] = total * scale
        logit[i] += weight * pooled[i]


@kernel()
def fill_item_lists(
    row_keys: Bits,
    salt: np.uint64,
    popularity: Popularity,
    item_column: int,
    mean_length: float,
    max_length: int,
    offsets: npt.NDArray[np.int32],
    values: Ints,
) -> None:
    """Fill an id list that is drawn anew in every row and independent of the label."""
    at = 0
    offsets[0] = 0
    for i in range(len(row_keys)):
        key = derive(row_keys[i] ^ salt, 5)
        u = 1.0 - uniform(derive(key, _LENGTH))
        length = min(max_length, int(np.floor(-np.log(u) * mean_length + uniform(derive(key, _ROUND)))))
        for n in range(length):
            values[at] = draw_slot(popularity, item_column, derive(key, n))
            at += 1
        offsets[i + 1] = at


@kernel()
def add_cross(
    left_salt: np.uint64, left: Ints, right_salt: np.uint64, right: Ints, era: Era, weight: float, logit: Floats
) -> None:
    """Add the dot product of two ids' hidden two-dimensional vectors, which a dot-interaction layer can learn."""
    for i in range(len(left)):
        for d in range(2):
            a = hidden_effect(derive(left_salt, 50 + d), left[i], era)
            logit[i] += weight * 0.7071067811865476 * a * hidden_effect(derive(right_salt, 50 + d), right[i], era)


@kernel()
def add_product(values: Floats, salt: np.uint64, ids: Ints, era: Era, weight: float, logit: Floats) -> None:
    """Add the product of a number and an id's hidden effect."""
    for i in range(len(ids)):
        logit[i] += weight * values[i] * hidden_effect(derive(salt, 60), ids[i], era)


@kernel()
def draw_slots(keys: Bits, what: int, popularity: Popularity, column: int, slots: Ints) -> None:
    """Draw a slot of the column for each key."""
    for i in range(len(keys)):
        slots[i] = draw_slot(popularity, column, derive(keys[i], what))


@kernel()
def draw_labels(row_keys: Bits, probability: Floats, labels: npt.NDArray[np.int8]) -> None:
    """Draw a Bernoulli label for each row."""
    for i in range(len(row_keys)):
        labels[i] = uniform(derive(row_keys[i], 99)) < probability[i]


@kernel()
def count_shifts(
    salt: np.uint64, users: Ints, start_ratio: Floats, shifts_per_window: int, window: int, shift: Ints
) -> None:
    """Number of ids that each session's user has seen at its start, growing evenly over time with a phase per user."""
    for i in range(len(users)):
        phase = uniform(derive(mix(salt), users[i]))
        shift[i] = np.int64(np.floor((window + start_ratio[i] - phase) * shifts_per_window))
