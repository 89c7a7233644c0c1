"""Rows of a synthetic log: what a session shares, how lists move, how ids come and go, and that all can be repeated."""

import itertools
from functools import cache

import numpy as np
import pyarrow as pa
import pytest

from headrace.logs.generate import PRESETS, GenerateConfig, Generator, generate_window
from headrace.logs.generate import rows as rows_module


@cache
def table(window: int = 0, **values: object) -> pa.Table:
    config = GenerateConfig.from_dict({"rows": 60_000, "windows": 3, **values}, where="test")
    return pa.Table.from_batches([rows.batch for rows in generate_window(config, window)])


def by_session(log: pa.Table) -> tuple[pa.Table, np.ndarray]:
    """Rows sorted by session (then time), and whether a row belongs to the session of the row before."""
    log = log.take(np.argsort(log["session"].to_numpy(), kind="stable"))
    return log, np.diff(log["session"].to_numpy()) == 0


def test_the_same_seed_gives_the_same_rows_and_another_gives_others() -> None:
    config = GenerateConfig(rows=3000, windows=3)
    first = pa.Table.from_batches([rows.batch for rows in generate_window(config, 1)])
    again = pa.Table.from_batches([rows.batch for rows in generate_window(config, 1)])
    assert first.equals(again)
    other = pa.Table.from_batches([rows.batch for rows in generate_window(config.model_copy(update={"seed": 8}), 1)])
    assert not first["item"].equals(other["item"])


def test_a_window_does_not_depend_on_those_before_it() -> None:
    config = GenerateConfig(rows=3000, windows=3)
    generator = Generator(config)
    in_turn = [pa.Table.from_batches([rows.batch for rows in generator.window(w)]) for w in range(3)]
    alone = pa.Table.from_batches([rows.batch for rows in generate_window(config, 2)])
    assert in_turn[2].equals(alone)


def test_rows_do_not_depend_on_the_chunks_they_are_made_in(monkeypatch: pytest.MonkeyPatch) -> None:
    config = GenerateConfig(rows=3000, windows=1)
    whole = pa.Table.from_batches([rows.batch for rows in generate_window(config, 0)])
    monkeypatch.setattr(rows_module, "CHUNK_ROWS", 700)
    parts = [rows.batch for rows in generate_window(config, 0)]
    assert len(parts) == 5
    assert pa.Table.from_batches(parts).combine_chunks().equals(whole.combine_chunks())


def test_rows_are_numbered_across_windows_and_sessions_are_not_shared() -> None:
    config = GenerateConfig(rows=3001, windows=3)
    windows = [pa.Table.from_batches([rows.batch for rows in generate_window(config, w)]) for w in range(3)]
    assert [int(i) for w in windows for i in w["row"].to_pylist()] == list(range(3001))
    sessions = [set(w["session"].to_pylist()) for w in windows]
    assert not sessions[0] & sessions[1]
    assert not sessions[1] & sessions[2]


def test_a_session_keeps_its_user_and_meets_a_new_item_each_row() -> None:
    log, same = by_session(table())
    assert (np.diff(log["user"].to_numpy())[same] == 0).all()
    assert (np.diff(log["item"].to_numpy())[same] != 0).mean() > 0.9


@pytest.mark.parametrize("column", ["segment_2", "user_x0", "user_x3", "history", "list_1"])
def test_user_side_columns_change_as_often_as_asked(column: str) -> None:
    log, same = by_session(table(change_ratio=0.2))
    values = log[column].to_pylist()
    changed = np.array([a != b for a, b in itertools.pairwise(values)])
    if pa.types.is_list(log.schema.field(column).type):  # an empty list stays empty
        same = same & np.array([bool(a) for a in values[:-1]])
    # A segment of 400 may be drawn again, two dense values or shifted lists may coincide: a little below 0.2.
    assert changed[same].mean() == pytest.approx(0.19, abs=0.02)


def test_nothing_changes_within_a_session_at_ratio_0() -> None:
    log, same = by_session(table(change_ratio=0.0, rows=5000))
    for name in ("segment_0", "user_x1", "history"):
        values = log[name].to_pylist()
        assert all(a == b for a, b, s in zip(values[:-1], values[1:], same, strict=True) if s)


def test_a_list_that_changes_drops_its_oldest_id_and_gains_a_newest() -> None:
    log, same = by_session(table(change_ratio=0.2))
    lists = log["history"].to_pylist()
    shifted = [(a, b) for a, b, s in zip(lists[:-1], lists[1:], same, strict=True) if s and a != b]
    assert len(shifted) > 1000
    assert all(b[:-1] == a[1:] for a, b in shifted)


def test_list_lengths_have_the_mean_asked_for_and_stay_below_the_cap() -> None:
    lengths = np.diff(table(list_mean_length=6.0, user_zipf=0.0)["list_1"].combine_chunks().offsets.to_numpy())
    assert lengths.mean() == pytest.approx(6.0, rel=0.06)
    capped = np.diff(table(list_mean_length=6.0, list_max_length=4)["history"].combine_chunks().offsets.to_numpy())
    assert capped.max() == 4
    assert table(list_mean_length=0.0, rows=300)["history"].to_pylist() == [[]] * 100


def test_ids_of_users_lists_and_sessions_are_unrelated() -> None:
    row = table().slice(0, 2000)
    histories = [tuple(h) for h in row["history"].to_pylist() if len(h) > 5]
    others = [tuple(h) for h in row["list_1"].to_pylist() if len(h) > 5]
    assert not set(histories) & set(others)


def test_items_are_skewed_and_segments_belong_to_users() -> None:
    log = table(change_ratio=0.0)
    counts = np.sort(np.bincount(log["item"].to_numpy()))[::-1]
    assert counts[:50].sum() > 0.4 * counts.sum()  # the top 1 % of 5000
    pairs = {(u, s) for u, s in zip(log["user"].to_pylist(), log["segment_1"].to_pylist(), strict=True)}
    assert len(pairs) == len({u for u, _ in pairs})
    pairs = {(i, c) for i, c in zip(log["item"].to_pylist(), log["category_0"].to_pylist(), strict=True)}
    assert len(pairs) == len({i for i, _ in pairs})


def test_a_share_of_the_ids_is_new_in_each_window() -> None:
    values = {"new_ids_ratio": 0.1, "items": 500, "users": 500, "user_zipf": 0.0, "zipf": 0.0}
    first, second = table(0, **values), table(1, **values)
    for column in ("item", "user"):
        before, after = set(first[column].to_pylist()), set(second[column].to_pylist())
        assert len(after - before) / len(after) == pytest.approx(0.1, abs=0.04)
        assert max(before) < 500 <= max(after) < 1000
    still = table(2, **{**values, "new_ids_ratio": 0.0})
    assert max(still["item"].to_pylist()) < 500


def test_dense_columns_are_near_normal_or_counts_whose_log_is() -> None:
    log = table()
    assert log["item_x0"].to_numpy().std() == pytest.approx(1, abs=0.03)
    counts = log["item_x1"].to_numpy()
    assert (counts == np.floor(counts)).all()
    assert counts.min() >= 0
    assert np.log1p(counts).std() == pytest.approx(0.9, abs=0.1)


def test_columns_of_one_block_change_in_the_same_rows_and_at_their_own_ratio() -> None:
    log, same = by_session(
        table(rows=30_000, user_dense=4, dense_together=2, change_ratio=0.02, change_ratio_to=0.4, zipf=0.0)
    )
    names = [f"user_x{c}" for c in range(4)]
    pairs = [np.diff(log[name].to_numpy())[same] != 0 for name in names]
    # Counts are often drawn alike twice, fractions of three digits hardly ever.
    assert (pairs[1] & ~pairs[0]).mean() < 0.002
    assert (pairs[3] & ~pairs[2]).mean() < 0.002
    assert abs(pairs[0].mean() - pairs[2].mean()) > 0.1


def test_renewed_lists_share_next_to_nothing_with_the_row_before() -> None:
    log, same = by_session(
        table(rows=6000, change_ratio=0.3, list_renewal_ratio=0.5, list_mean_length=30.0, zipf=0.0, items=1_000_000)
    )
    lists = log["history"].to_pylist()
    kinds = {"same": 0, "shifted": 0, "renewed": 0}
    for before, now, together in zip(lists, lists[1:], same, strict=False):
        if together and len(now) > 4:
            kind = "same" if now == before else "shifted" if now[:-1] == before[1:] else "renewed"
            kinds[kind] += 1
            assert kind != "renewed" or not set(now) & set(before)
    assert 0.4 < kinds["renewed"] / (kinds["renewed"] + kinds["shifted"]) < 0.6


def test_item_lists_are_new_in_every_row() -> None:
    log = table(item_lists=1, item_list_mean_length=8.0, rows=3000, items=1_000_000, zipf=0.0)
    lists = [tuple(row) for row in log["item_list_0"].to_pylist() if len(row) > 2]
    assert len(set(lists)) == len(lists)
    assert 7.0 < np.mean([len(row) for row in log["item_list_0"].to_pylist()]) < 9.0


def test_presets_are_configs_whose_schema_names_their_columns() -> None:
    assert {name: len(GenerateConfig(**values).list_names) for name, values in PRESETS.items()} == {
        "rm1": 26,
        "mixed": 42,
        "control": 20,
    }
    assert len(GenerateConfig(**PRESETS["mixed"]).dense_names) == 504
