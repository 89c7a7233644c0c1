"""The table group: what is seen, admitted, updated, evicted, grown and told to consumers."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.embeddings import AdagradConfig, Keys, SGDConfig, TableConfig, TableGroup
from headrace.embeddings.changes.log import RowBlock
from headrace.embeddings.optimizers import Rounding, build_optimizer
from headrace.embeddings.storage.host import gather_rows
from headrace.embeddings.storage.row_formats import FP32
from headrace.errors import ConfigError, HeadraceError

SGD = SGDConfig(lr=1.0)


def group_of(seed: int = 3, capacity: int = 2, **collisionless: object) -> TableGroup:
    common: dict[str, Any] = {"embedding_dim": 4, "optimizer": SGD}
    item = {"kind": "collisionless", "num_embeddings": capacity, "init_scale": 0.5, **collisionless}
    tables = [
        TableConfig(name="country", kind="direct", num_embeddings=4, **common),
        TableConfig(name="item", **item, **common),
        TableConfig(name="user", kind="hashed", num_embeddings=3, **common),
    ]
    return TableGroup(tables, seed=seed)


def keys(*pairs: tuple[int, int], counts: list[int] | None = None) -> Keys:
    tables, ids = [table for table, _ in pairs], [key for _, key in pairs]
    return Keys(np.array(tables, np.int32), np.array(ids, np.int64), np.array(counts or [1] * len(ids), np.int32))


def train(t: TableGroup, *pairs: tuple[int, int], gradient: float = 1.0) -> None:
    batch = keys(*pairs)
    t.update(batch, np.full((len(pairs), t.embedding_dim), gradient, dtype=np.float32))


def values(t: TableGroup, *pairs: tuple[int, int]) -> np.ndarray:
    return t.read(keys(*pairs).unseen())


def test_fixed_tables_lie_one_after_the_other_behind_the_zero_row() -> None:
    t = group_of()
    assert t.index.first_rows.tolist() == [1, -1, 5]
    assert t.index.resolve(keys((0, 0), (0, 3), (2, 0), (2, 2))).tolist() == [1, 4, 5, 7]
    assert t.num_rows == 7
    assert not t.storage.weights[0].any()


def test_rows_that_were_read_are_a_copy() -> None:
    t = group_of()
    rows = values(t, (0, 1))
    rows[:] = 9
    assert not (values(t, (0, 1)) == 9).any()


def test_first_values_do_not_depend_on_the_order_of_arrival_or_on_growth() -> None:
    ids = [(1, key) for key in (5, -1, 2**60, 77, 3, 12)]
    at_once, one_by_one = group_of(capacity=100), group_of(capacity=1)
    train(at_once, *ids, gradient=0.0)
    for pair in reversed(ids):
        train(one_by_one, pair, gradient=0.0)
    np.testing.assert_array_equal(values(at_once, *ids), values(one_by_one, *ids))
    assert len(np.unique(values(at_once, *ids))) == 24
    assert not np.array_equal(values(group_of(seed=4), (0, 0)), values(group_of(), (0, 0)))


def test_growth_keeps_rows_state_and_metadata() -> None:
    t = group_of(capacity=1)
    train(t, (1, 0), (0, 2), gradient=0.25)
    before, metadata = values(t, (1, 0), (0, 2)), t.metadata.records[[3, 8]].copy()
    capacity = t.storage.capacity
    train(t, *[(1, key) for key in range(1, 400)])
    assert t.storage.capacity > capacity
    np.testing.assert_array_equal(values(t, (1, 0), (0, 2)), before)
    np.testing.assert_array_equal(t.metadata.records[[3, 8]], metadata)
    assert t.num_rows == 7 + 400
    assert t.num_bytes > t.storage.capacity * (4 * 4 + 24)
    assert t.weights.data_ptr() == t.storage.weights.ctypes.data


def test_update_changes_rows_and_metadata_of_its_keys_only() -> None:
    t = group_of()
    before = values(t, (0, 0), (0, 1), (2, 1))
    batch = keys((0, 0), (2, 1), counts=[5, 1])
    t.update(batch, np.full((2, 4), 2, dtype=np.float32))
    np.testing.assert_allclose(values(t, (0, 0), (0, 1), (2, 1)), before - np.array([[2], [0], [2]]), rtol=1e-6)
    seen = t.metadata.records
    assert seen["frequency"].tolist()[:7] == [0, 5, 0, 0, 0, 0, 1]
    assert seen["version"].tolist()[:7] == [0, 1, 0, 0, 0, 0, 1]
    t.end_window()
    train(t, (0, 0))
    assert t.metadata.records["version"][1] == t.version == 3
    assert t.step == 2


def test_frequency_stops_at_its_largest_value() -> None:
    t = group_of()
    for _ in range(3):
        t.update(keys((0, 0), counts=[2**30]), np.zeros((1, 4), dtype=np.float32))
    assert t.metadata.records["frequency"][1] == 2**31 - 1


def test_an_id_reads_zeros_and_learns_nothing_until_it_is_admitted() -> None:
    t = group_of(admission_count=3)
    for _ in range(2):
        assert not t.read(keys((1, 9))).any()
        train(t, (1, 9))
        assert not values(t, (1, 9)).any()
        assert t.num_rows == 7
    first = t._layout.first_values.widened(keys((1, 9)), 4)
    assert not values(t, (1, 9)).any(), "no update follows"
    np.testing.assert_array_equal(t.read(keys((1, 9))), first)
    train(t, (1, 9), gradient=0.5)
    np.testing.assert_array_equal(values(t, (1, 9)), first - np.float32(0.5))
    assert t.num_rows == 8
    assert not t.storage.weights[0].any()


def test_a_read_has_no_effect_however_often_and_with_whatever_keys() -> None:
    t, undisturbed = group_of(admission_count=2, evict_after=1), group_of(admission_count=2, evict_after=1)
    for step in range(6):
        for _ in range(step):
            t.read(keys((0, 0), (1, step), (1, 99), (2, 1), counts=[1, 5, 1, 1]))
        for each in (t, undisturbed):
            train(each, (1, step), (1, step + 1), (0, step % 4))
            if step % 2:
                each.end_window()
    ours, theirs = t.state_dict(), undisturbed.state_dict()
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_a_read_gives_what_the_update_of_the_same_keys_finds() -> None:
    t = group_of(admission_count=2)
    rng = np.random.default_rng(0)
    for _ in range(20):
        batch = keys(*((1, int(key)) for key in np.unique(rng.integers(0, 30, 6))), (0, 1), (2, 2))
        read = t.read(batch)
        t.update(batch, np.ones((len(batch), 4), dtype=np.float32))
        has_row = t.index.resolve(batch) != 0
        np.testing.assert_array_equal(t.read(batch.unseen())[has_row], read[has_row] - np.float32(1))


def test_with_admission_count_0_every_id_reads_its_first_value() -> None:
    t = group_of(admission_count=0)
    first = t._layout.first_values.widened(keys((1, 9)), 4)
    np.testing.assert_array_equal(values(t, (1, 9)), first)
    assert t.num_rows == 7


def test_ids_not_seen_for_some_windows_are_evicted_and_begin_anew() -> None:
    t = group_of(evict_after=2)
    freed = []
    for window in range(6):
        train(t, (1, 2))
        if window in (0, 1):
            train(t, (1, 1))
        freed.append(t.end_window())
    assert freed == [0, 0, 0, 1, 0, 0]  # seen in windows 0 and 1, not in 2 and 3
    assert not values(t, (1, 1)).any()
    assert values(t, (1, 2)).any()
    assert values(t, (0, 0)).any(), "fixed tables keep their rows"
    trained = group_of()
    train(trained, (1, 1), gradient=0.0)
    train(t, (1, 1), gradient=0.0)
    np.testing.assert_array_equal(values(t, (1, 1)), values(trained, (1, 1)))
    assert t.num_rows == 9


def test_tables_of_a_group_have_names_and_one_dimension() -> None:
    def group(*tables: tuple[str, int | None]) -> TableGroup:
        return TableGroup([TableConfig(name=name, embedding_dim=dim) for name, dim in tables], seed=0)

    assert group(("a", 4), ("b", 4)).embedding_dim == 4
    cases: dict[str, list[tuple[str, int | None]]] = {
        "tables.b.embedding_dim: given 8, expected 4, as in table a": [("a", 4), ("b", 8)],
        "tables.b.embedding_dim: given None, expected 4, as in table a": [("a", 4), ("b", None)],
        "tables.a.embedding_dim: given None, expected a number": [("a", None)],
        "tables: 'a' occurs 2 times, expected different names": [("a", 4), ("a", 4)],
    }
    for message, tables in cases.items():
        with pytest.raises(ConfigError, match=f"^{message}$"):
            group(*tables)


def test_rows_begin_with_the_initial_state_of_their_optimizer_also_where_another_id_was() -> None:
    optimizer = AdagradConfig(initial_accumulator=0.5)
    common: dict[str, Any] = {"num_embeddings": 1, "embedding_dim": 4, "optimizer": optimizer}
    country = TableConfig(name="country", kind="hashed", **common)
    t = TableGroup([country, TableConfig(name="item", kind="collisionless", evict_after=1, **common)], seed=3)
    assert t.weights.any()  # writes all rows
    np.testing.assert_array_equal(t.storage.state[1], [0.5] * 4)
    train(t, (1, 1))
    assert (t.storage.state[2] == 1.5).all()
    train(t, (1, 2))
    t.end_window()
    t.end_window()
    t.update(keys((1, 3)), np.zeros((1, 4), dtype=np.float32))
    np.testing.assert_array_equal(t.storage.state[2], [0.5] * 4)


def copied(blocks: Iterable[RowBlock], onto: dict[tuple[int, int], Any] | None = None) -> dict[tuple[int, int], Any]:
    """What a consumer has that applies blocks in their order: (table, id) -> weights, state and metadata."""
    have = dict(onto or {})
    for block in blocks:
        pairs = list(zip(block.tables.tolist(), block.ids.tolist(), strict=True))
        for place, pair in enumerate(pairs):
            if block.is_tombstones:
                have.pop(pair, None)
            else:
                have[pair] = {name: column[place].tolist() for name, column in block.columns.items()}
    return have


def test_changes_are_the_rows_of_later_versions_each_once_at_its_last() -> None:
    t = group_of()
    t.acknowledge("delta", t.version)
    train(t, (0, 1), (1, 5))
    train(t, (0, 2), (1, 5))
    (block,) = t.changes(0)
    assert block.version == 2
    assert sorted(zip(block.tables.tolist(), block.ids.tolist(), strict=True)) == [(0, 1), (0, 2), (1, 5)]
    (block,) = t.changes(1)
    assert sorted(zip(block.tables.tolist(), block.ids.tolist(), strict=True)) == [(0, 2), (1, 5)]
    assert list(t.changes(2)) == []


def test_a_copy_kept_up_by_changes_is_the_table_also_over_evictions_and_a_restart() -> None:
    t = group_of(evict_after=1)
    copies: dict[str, tuple[int, dict[tuple[int, int], Any]]] = {"often": (0, {}), "seldom": (0, {})}
    for consumer in copies:
        t.acknowledge(consumer, 0)
    rng = np.random.default_rng(0)
    for step in range(40):
        train(t, *{(1, int(key)) for key in rng.integers(0, 12, 3)}, (2, int(rng.integers(3))))
        if step % 5 == 4:
            t.end_window()
        if step == 23:  # the consumers stay what they were, and so does what they have not seen
            loaded = group_of(evict_after=1)
            loaded.load_state_dict(t.state_dict())
            t = loaded
        for consumer in ("often",) if step % 7 else ("often", "seldom"):
            since, have = copies[consumer]
            have = copied(t.changes(since), have)
            t.acknowledge(consumer, t.version)
            copies[consumer] = t.version, have
            assert have == copied(t.changes(0))
    assert t.num_rows < 7 + 12, "ids were evicted"


def test_changes_found_by_the_log_are_those_found_by_a_look_at_every_row() -> None:
    t = group_of()
    train(t, (0, 1), (1, 1))
    t.acknowledge("late", t.version)
    for key in range(5):
        train(t, (1, key % 3))
    by_log = copied(t.changes(3))
    assert t.changelog.rows_since(3, t.metadata.records["version"]) is not None
    assert by_log == {pair: row for pair, row in copied(t.changes(0)).items() if row["version"] > 3}
    assert copied(t.changes(1)) == {pair: row for pair, row in copied(t.changes(0)).items() if row["version"] > 1}


def test_the_log_of_changes_stays_as_short_as_what_changed() -> None:
    t = group_of(capacity=4000)
    t.acknowledge("slow", 0)
    for _ in range(40):
        train(t, *((1, key) for key in range(4000)))
    kept = sum(len(rows) for _, rows in t.changelog._changed)
    assert kept < 65_536 + 2 * 4000
    assert len(copied(t.changes(0))) == 4000
    t.acknowledge("slow", t.version)
    assert t.changelog._changed == []


def test_changes_that_nobody_recorded_evictions_for_are_refused() -> None:
    t = group_of(evict_after=1)
    train(t, (1, 1))
    t.end_window()
    train(t, (1, 2))
    t.end_window()  # forgets 1, and no consumer had joined
    with pytest.raises(
        HeadraceError, match="changes since version 1 are no longer available, expected 4 or later, or 0"
    ):
        list(t.changes(1))
    t.acknowledge("delta", t.version)
    assert list(t.changes(t.version)) == []


def test_a_consumer_cannot_have_a_version_that_is_still_to_come() -> None:
    t = group_of()
    train(t, (1, 1))
    with pytest.raises(HeadraceError, match="acknowledge: version: given 2, expected 0 to 1"):
        t.acknowledge("delta", 2)


def test_a_table_that_changes_between_two_blocks_says_so() -> None:
    t = group_of(capacity=70_000)
    train(t, *((1, key) for key in range(70_000)))
    blocks = t.changes(0)
    assert len(next(blocks).ids) == 65_536
    train(t, (1, 0))
    with pytest.raises(RuntimeError, match="from version 1 to 2"):
        next(blocks)


def test_rows_beyond_two_to_the_31_elements_are_addressed(tmp_path: Path) -> None:
    num_rows, dim = 2**27 + 8, 16
    with open(tmp_path / "rows", "w+b") as file:  # 8 GiB of holes: pages that are never touched take no space
        file.truncate(num_rows * dim * 4)
        weights = np.asarray(np.memmap(file, dtype=np.float32, shape=(num_rows, dim)))
    rows = np.array([1, num_rows - 1])
    gradients = np.array([[1] * dim, [2] * dim], dtype=np.float32)
    tables, rounding = np.zeros(2, np.int32), Rounding.of("fp32", 0, 1, np.zeros(1, np.uint64))
    nothing = np.empty((num_rows, 0), np.float32)
    build_optimizer([SGD], dim).apply(weights, nothing, rows, tables, rows, gradients, 1, rounding)
    out = np.empty((2, dim), dtype=np.float32)
    gather_rows(weights, rows, tables, rows, rounding.table_seeds, np.zeros(1, np.float32), FP32, out)
    np.testing.assert_array_equal(out, -gradients)
    np.testing.assert_array_equal(weights[-1], -gradients[1])
    assert not weights[num_rows - 2].any()
