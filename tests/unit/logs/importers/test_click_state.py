"""What earlier clicks say about a click, against a plain definition that looks at all clicks for each one."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from headrace.logs.importers.click_state import SPARE_HISTORY, ClickState, JaggedIds

HOUR = 100


@dataclass(frozen=True)
class Click:
    time: int
    user: int
    session: int
    item: int


def start_hour(state: ClickState, clicks: list[Click]) -> JaggedIds:
    return state.start_hour(
        *(np.array([getattr(c, name) for c in clicks], np.int64) for name in ("time", "user", "item"))
    )


def lists(ids: JaggedIds) -> list[list[int]]:
    return [ids.values[a:b].tolist() for a, b in zip(ids.offsets[:-1], ids.offsets[1:], strict=True)]


@st.composite
def hours(draw: st.DrawFn) -> list[list[Click]]:
    """A few hours of clicks in order of time; some happen long after their hour began."""
    result = []
    for hour in range(draw(st.integers(1, 4))):
        late = st.integers(0, 30) | st.integers(0, 4 * HOUR)
        clicks = draw(
            st.lists(st.builds(Click, late, st.integers(0, 3), st.integers(0, 2), st.integers(0, 6)), max_size=10)
        )
        moved = [Click(c.time + hour * HOUR // 2, c.user, c.session + 10 * hour, c.item) for c in clicks]
        result.append(sorted(moved, key=lambda click: click.time))
    return result


@given(hours())
@settings(max_examples=200, deadline=None)
def test_histories_sessions_and_counts_agree_with_their_definition(log: list[list[Click]]) -> None:
    state = ClickState(history_length=3, ticks_per_hour=HOUR)
    seen: list[Click] = []
    for clicks in log:
        histories = lists(start_hour(state, clicks))
        seen += clicks
        if not clicks:
            continue
        sessions = lists(state.session_items(np.array([click.session for click in clicks])))
        candidates = state.candidates(2, np.uint64(1))
        ordered = sorted(seen, key=lambda click: click.time)
        for i, click in enumerate(clicks):
            before = [c for c in ordered if c.time < click.time]
            assert histories[i] == [c.item for c in before if c.user == click.user][-3:]
            assert sessions[i] == [c.item for c in clicks if c.session == click.session and c.time < click.time]
            counts = Counter(c.item for c in before if c.time >= click.time - HOUR)
            rows = candidates.click == i
            drawn_by = candidates.label[rows] == 0 if any(item != click.item for item in counts) else 0
            expected = np.array([counts[item] for item in candidates.item[rows]]) - drawn_by
            assert candidates.last_hour[rows].tolist() == expected.tolist()
            assert candidates.item[rows & (candidates.label == 1)].tolist() == [click.item]


def test_clicks_at_one_moment_do_not_see_each_other() -> None:
    state = ClickState(history_length=5, ticks_per_hour=HOUR)
    histories = start_hour(state, [Click(5, 1, 1, 7), Click(5, 1, 1, 8), Click(6, 1, 1, 9)])
    assert lists(histories) == [[], [], [7, 8]]
    assert lists(state.session_items(np.array([1, 1, 1]))) == [[], [], [7, 8]]


def test_a_history_is_full_although_clicks_of_the_future_are_remembered() -> None:
    state = ClickState(history_length=3, ticks_per_hour=HOUR)
    past = [Click(t, 1, 1, t) for t in range(10)]
    future = [Click(1000 + t, 1, 1, 500) for t in range(SPARE_HISTORY)]
    start_hour(state, past + future)
    assert lists(start_hour(state, [Click(50, 1, 2, 1)])) == [[7, 8, 9]]


def test_too_many_clicks_of_the_future_shorten_a_history_but_never_enter_it() -> None:
    state = ClickState(history_length=3, ticks_per_hour=HOUR)
    start_hour(state, [Click(t, 1, 1, t) for t in range(10)] + [Click(1000 + t, 1, 1, 500) for t in range(50)])
    assert lists(start_hour(state, [Click(50, 1, 2, 1)])) == [[]]


def test_many_users_have_histories_of_their_own() -> None:
    state = ClickState(history_length=2, ticks_per_hour=HOUR)
    for hour in range(3):
        clicks = [Click(hour * HOUR + 1, user, user, 10 * user + hour) for user in range(5000)]
        histories = lists(start_hour(state, clicks))
    assert histories == [[10 * user, 10 * user + 1] for user in range(5000)]


def many_candidates(seed: int = 1, clicked: int = 1) -> tuple[ClickState, object]:
    state = ClickState(history_length=2, ticks_per_hour=HOUR)
    start_hour(state, [Click(t, 0, 0, item) for t, item in enumerate([1] * 5 + [2] * 3 + [3] * 1 + [4] * 1)])
    start_hour(state, [Click(HOUR + i, i, i, clicked) for i in range(20_000)])
    return state, state.candidates(4, np.uint64(seed))


def test_negatives_come_up_in_proportion_to_the_previous_hours_clicks_on_other_items() -> None:
    _, found = many_candidates()
    drawn = Counter(found.item[found.label == 0].tolist())
    assert sum(drawn.values()) == 80_000
    for item, share in ((2, 0.6), (3, 0.2), (4, 0.2)):
        assert drawn[item] / 80_000 == pytest.approx(share, abs=0.01)
    assert drawn[1] == 0
    _, found = many_candidates(clicked=99)
    assert (found.item[found.label == 0] == 1).mean() == pytest.approx(0.5, abs=0.01)


def clicks_between(start: int, stop: int, first_item: int) -> list[Click]:
    random = np.random.default_rng(start)
    times, items = np.sort(random.integers(start, stop, 2000)), first_item + random.integers(0, 200, 2000)
    return [Click(int(time), 0, 0, int(item)) for time, item in zip(times, items, strict=True)]


def after_new_items_have_come(*, uniform: bool) -> Any:
    state = ClickState(history_length=1, ticks_per_hour=10_000)
    start_hour(state, clicks_between(0, 5_000, 0))
    start_hour(state, clicks_between(15_000, 20_000, 200))
    return state.candidates(4, np.uint64(1), uniform=uniform)


def test_the_count_alone_does_not_tell_a_click_from_a_negative_drawn_by_popularity() -> None:
    found = after_new_items_have_come(uniform=False)
    assert roc_auc_score(found.label, found.last_hour) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("uniform", [False, True])
def test_a_count_of_zero_is_no_sign_of_a_click(uniform: bool) -> None:
    found = after_new_items_have_come(uniform=uniform)
    assert (found.last_hour[found.label == 0] == 0).any()
    assert (found.last_hour >= 0).all()


def test_uniform_negatives_are_the_other_items_of_the_day_each_as_often_as_any() -> None:
    state = ClickState(history_length=1, ticks_per_hour=HOUR)
    start_hour(state, [Click(0, 0, 0, 99)])
    start_hour(state, [Click(23 * HOUR, 0, 0, item) for item in [1] * 50 + [2, 3, 4]])
    start_hour(state, [Click(24 * HOUR + 1, 0, 0, 1) for _ in range(5_000)])
    found = state.candidates(4, np.uint64(1), uniform=True)
    drawn = Counter(found.item[found.label == 0].tolist())
    assert sorted(drawn) == [2, 3, 4]  # neither the clicked one nor the one of more than a day ago
    for item in (2, 3, 4):
        assert drawn[item] / 20_000 == pytest.approx(1 / 3, abs=0.02)


def test_the_clicked_item_stands_at_any_place_among_the_negatives() -> None:
    _, found = many_candidates()
    places = np.bincount(found.slot[found.label == 1], minlength=5)
    assert np.abs(places - 4000).max() < 5 * np.sqrt(4000)
    assert (np.bincount(found.click) == 5).all()


def test_candidates_are_decided_by_the_key() -> None:
    first, again, other = (many_candidates(seed)[1] for seed in (1, 1, 2))
    assert (first.item == again.item).all()
    assert (first.slot == again.slot).all()
    assert (first.item != other.item).any()


def test_a_click_stands_alone_where_nothing_else_was_clicked() -> None:
    state = ClickState(history_length=2, ticks_per_hour=HOUR)
    start_hour(state, [Click(1, 1, 1, 7)])
    assert not state.has_pool
    start_hour(state, [Click(101, 1, 2, 7), Click(102, 1, 2, 8)])
    assert state.has_pool
    found = state.candidates(2, np.uint64(1))
    assert found.click.tolist() == [0, 1, 1, 1]
    assert sorted(found.item[1:].tolist()) == [7, 7, 8]


def test_an_hour_without_clicks_leaves_the_previous_ones_to_draw_from() -> None:
    state = ClickState(history_length=2, ticks_per_hour=HOUR)
    start_hour(state, [Click(1, 1, 1, 7)])
    start_hour(state, [])
    start_hour(state, [])
    start_hour(state, [Click(350, 1, 2, 8)])
    assert set(state.candidates(3, np.uint64(1)).item.tolist()) == {7, 8}
