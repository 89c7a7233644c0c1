"""Columns that hold the same ids are told from codes that overlap by themselves."""

import numpy as np
import pyarrow as pa
import pytest

from headrace.logs.inspection import ColumnProfile, Overlap, find_overlaps, guess_parts, shared_tables
from headrace.logs.inspection.hashing import hash_column, hash_integers, integers_of
from headrace.logs.inspection.id_counter import MAX_SLOTS

ROWS = 6_000


def overlaps(columns: dict[str, pa.Array], max_slots: int = MAX_SLOTS) -> list[Overlap]:
    profiles = []
    for name, values in columns.items():
        profile = ColumnProfile(name, values.type, max_slots=max_slots)
        for start in range(0, len(values), 2_000):
            profile.update(values.slice(start, 2_000))
        profiles.append(profile)
    return find_overlaps(profiles, guess_parts(profiles))


def tables(columns: dict[str, pa.Array], max_slots: int = MAX_SLOTS) -> list[tuple[str, ...]]:
    return shared_tables(overlaps(columns, max_slots), list(columns))


def zipf(rng: np.random.Generator, num_ids: int, rows: int = ROWS) -> np.ndarray:
    """Uneven draws from 0 to num_ids; which ids are frequent has nothing to do with their numbers."""
    weights = 1.0 / np.arange(1, num_ids + 1)
    return np.asarray(rng.permutation(num_ids)[rng.choice(num_ids, rows, p=weights / weights.sum())])


def lists(values: np.ndarray, length: int = 4) -> pa.Array:
    offsets = pa.array(np.arange(0, len(values) + 1, length, dtype=np.int32))
    return pa.ListArray.from_arrays(offsets, pa.array(values))


def test_hashes_of_integers_can_be_undone() -> None:
    numbers = np.array([0, 1, -1, 12345, 2**63 - 1, -(2**63), 1 << 40], np.int64)
    assert integers_of(hash_integers(numbers)).tolist() == numbers.tolist()
    hashes = hash_column(pa.array(numbers))
    assert hashes is not None
    assert hashes.tolist() == hash_integers(numbers).tolist()


def test_a_whole_number_has_one_hash_however_it_is_stored() -> None:
    whole = [0, 1, -7, 123_456_789]
    as_integers, as_floats = hash_column(pa.array(whole)), hash_column(pa.array([float(number) for number in whole]))
    assert as_integers is not None
    assert as_floats is not None
    assert as_integers.tolist() == as_floats.tolist()
    others = hash_column(pa.array([0.5, -7.25, 1e300, float("inf")]))
    assert others is not None
    assert not set(others.tolist()) & set(as_integers.tolist())


def test_sparse_ids_share_a_table_by_their_values_whatever_their_names() -> None:
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 2**40, 500)
    columns = {
        "a_id": pa.array(ids[rng.integers(0, 500, ROWS)]),
        "b_ids": lists(ids[rng.integers(0, 500, 4 * ROWS)]),
        "other_id": pa.array(rng.integers(0, 2**40, ROWS)),
    }
    (found,) = overlaps(columns)
    assert set(found.columns) == {"a_id", "b_ids"}
    assert found.evidence == "values"
    assert found.ratio > 0.99
    assert found.chance == 0.0
    assert tables(columns) == [("a_id", "b_ids")]


def test_codes_from_zero_on_do_not_share_a_table_by_accident() -> None:
    rng = np.random.default_rng(2)
    columns = {
        "user_id": pa.array(zipf(rng, 900)),
        "item_id": pa.array(zipf(rng, 300)),
        "city": pa.array(zipf(rng, 80)),
        "hour": pa.array(np.arange(ROWS) % 24),
        "device_type": pa.array(np.arange(ROWS) % 5),
    }
    found = overlaps(columns)
    assert found, "they do overlap"
    assert {overlap.evidence for overlap in found} == {None}
    assert {overlap.reason for overlap in found} == {"codes that overlap by themselves"}
    assert tables(columns) == []


def test_codes_numbered_by_frequency_do_not_share_a_table_because_the_first_are_frequent_in_both() -> None:
    rng = np.random.default_rng(3)
    weights = 1.0 / np.arange(1, 301)
    columns = {
        name: pa.array(rng.choice(size, 4 * ROWS, p=weights[:size] / weights[:size].sum()))
        for name, size in (("user_id", 300), ("item_id", 250))
    }
    assert tables(columns) == []


def test_codes_share_a_table_where_the_same_ones_are_frequent() -> None:
    rng = np.random.default_rng(4)
    item, user = zipf(rng, 300, 5 * ROWS), zipf(rng, 400)
    columns = {
        "user_id": pa.array(user),
        "movie_id": pa.array(item[:ROWS]),
        "watched_before": lists(item[ROWS:]),
    }
    assert tables(columns) == [("movie_id", "watched_before")]
    assert {o.evidence for o in overlaps(columns) if "user_id" not in o.columns} == {"counts"}


def test_columns_that_are_only_numbered_need_ids_that_are_no_codes() -> None:
    rng = np.random.default_rng(4)
    item = zipf(rng, 300, 5 * ROWS)
    assert tables({"movie_id": pa.array(item[:ROWS]), "list_1": lists(item[ROWS:])}) == []
    sparse = 10**6 + 7_919 * item
    assert tables({"C14": pa.array(sparse[:ROWS]), "C15": pa.array(sparse[ROWS : 2 * ROWS])}) == []
    hashed = rng.integers(0, 2**40, 300)[item]
    assert tables({"C14": pa.array(hashed[:ROWS]), "C15": pa.array(hashed[ROWS : 2 * ROWS])}) == [("C14", "C15")]


@pytest.mark.parametrize(
    ("single", "of_list", "shared"),
    [
        ("item_id", "item_history", True),
        ("item_id", "last_items", True),
        ("item_id", "history", True),
        ("item_category", "item_history", False),
        ("user_id", "history", False),
        ("C14", "C15", False),
    ],
)
def test_codes_used_evenly_share_a_table_by_their_names_alone(single: str, of_list: str, shared: bool) -> None:
    columns = {single: pa.array(np.arange(ROWS) % 200), of_list: lists(np.arange(4 * ROWS) * 7 % 200)}
    assert tables(columns) == ([(single, of_list)] if shared else [])
    assert {overlap.evidence for overlap in overlaps(columns)} == {"names" if shared else None}


def test_a_list_without_a_name_of_its_own_joins_no_column_if_two_could_be_meant() -> None:
    codes = np.arange(ROWS) % 200
    columns = {"item_id": pa.array(codes), "ad_id": pa.array(codes), "history": lists(np.arange(4 * ROWS) * 7 % 200)}
    assert tables(columns) == []


def test_the_last_item_joins_the_item_and_the_history() -> None:
    codes = np.arange(ROWS) % 200
    columns = {"item": pa.array(codes), "last_item": pa.array(codes[::-1]), "history": lists(np.arange(4 * ROWS) % 200)}
    assert tables(columns) == [("item", "last_item", "history")]


def test_codes_that_go_up_by_tens_are_codes_nevertheless() -> None:
    rng = np.random.default_rng(5)
    columns = {"user_id": pa.array(10 * zipf(rng, 900)), "item_id": pa.array(10 * zipf(rng, 300))}
    assert {overlap.evidence for overlap in overlaps(columns)} == {None}


def test_one_value_far_off_does_not_make_codes_look_sparse() -> None:
    rng = np.random.default_rng(6)
    user, item = zipf(rng, 900), zipf(rng, 300)
    user[0] = item[0] = 2**31 - 1
    assert tables({"user_id": pa.array(user), "item_id": pa.array(item)}) == []


def test_texts_share_a_table_if_they_are_the_same_but_not_numerals() -> None:
    rng = np.random.default_rng(7)
    user, item = zipf(rng, 900), zipf(rng, 300)
    numerals = {"user_id": pa.array([str(n) for n in user]), "item_id": pa.array([str(n) for n in item])}
    assert tables(numerals) == []
    texts = {"ad": pa.array([f"a{n}" for n in item]), "seen": lists(item)}
    texts["seen"] = pa.ListArray.from_arrays(texts["seen"].offsets, pa.array([f"a{n}" for n in item]))
    assert tables(texts) == [("ad", "seen")]


def test_numbers_and_texts_are_never_joined() -> None:
    codes = np.arange(ROWS) % 200
    columns = {"item_id": pa.array(codes), "item_ids": lists(codes)}
    columns["item_ids"] = pa.ListArray.from_arrays(columns["item_ids"].offsets, pa.array([str(n) for n in codes]))
    assert overlaps(columns) == []


def test_columns_of_few_ids_are_not_compared() -> None:
    rng = np.random.default_rng(8)
    ids = rng.integers(0, 2**40, 40)
    columns = {"item_id": pa.array(ids[np.arange(ROWS) % 40]), "item_history": lists(ids[np.arange(4 * ROWS) % 40])}
    assert overlaps(columns) == []


def test_ids_stored_as_floats_because_some_are_null_share_a_table_with_integers() -> None:
    rng = np.random.default_rng(9)
    ids = rng.integers(10**6, 10**9, 300)
    item = ids[rng.integers(0, 300, ROWS)]
    last = item.astype(np.float64)
    columns = {"item_id": pa.array(item), "last_item_id": pa.array(last, mask=np.arange(ROWS) % 3 == 0)}
    assert tables(columns) == [("item_id", "last_item_id")]


def test_more_ids_than_are_kept_are_compared_by_their_samples() -> None:
    rng = np.random.default_rng(10)
    ids = np.sort(rng.choice(2**40, 5_000, replace=False))
    columns = {
        "item_id": pa.array(ids[rng.integers(0, 5_000, 4 * ROWS)]),
        "history": lists(ids[rng.integers(0, 5_000, 16 * ROWS)]),
        "user_id": pa.array(rng.integers(0, 6_000, 4 * ROWS)),
        "page_id": pa.array(rng.integers(0, 5_000, 4 * ROWS)),
    }
    profile = ColumnProfile("item_id", pa.int64(), max_slots=1 << 10)
    profile.update(columns["item_id"])
    assert not profile.ids.is_exact
    assert tables(columns, max_slots=1 << 10) == [("item_id", "history")]
    evidence = {overlap.columns: overlap.evidence for overlap in overlaps(columns, max_slots=1 << 10)}
    assert evidence.get(("page_id", "user_id")) is None


def test_a_text_or_list_of_nulls_is_no_mistake() -> None:
    columns = {"a_id": pa.array([None] * 100, pa.string()), "b_ids": pa.array([None] * 100, pa.list_(pa.int64()))}
    assert overlaps(columns) == []
