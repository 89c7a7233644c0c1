"""The table: what is seen, admitted, updated, evicted, grown and told to consumers."""

from pathlib import Path

import numpy as np

from headrace.embeddings import AdagradConfig, EmbeddingTable, Keys, SGDConfig, TableConfig
from headrace.embeddings.arena import _gather
from headrace.embeddings.optimizers import Rounding, build_optimizer
from headrace.embeddings.row_formats import FP32

SGD = SGDConfig(lr=1.0)


def table(seed: int = 3, capacity: int = 2, **collisionless: object) -> EmbeddingTable:
    spaces = {
        "country": TableConfig(kind="direct", num_embeddings=4, optimizer=SGD),
        "item": TableConfig(
            kind="collisionless", num_embeddings=capacity, init_scale=0.5, optimizer=SGD, **collisionless
        ),
        "user": TableConfig(kind="hashed", num_embeddings=3, optimizer=SGD),
    }
    return EmbeddingTable(spaces, 4, seed=seed)


def keys(*pairs: tuple[int, int], counts: list[int] | None = None) -> Keys:
    spaces, ids = [space for space, _ in pairs], [key for _, key in pairs]
    return Keys(np.array(spaces, np.int32), np.array(ids, np.int64), np.array(counts or [1] * len(ids), np.int32))


def train(t: EmbeddingTable, *pairs: tuple[int, int], gradient: float = 1.0) -> None:
    batch = keys(*pairs)
    t.pull(batch, admit=True)
    t.push(batch, np.full((len(pairs), t.embedding_dim), gradient, dtype=np.float32))


def values(t: EmbeddingTable, *pairs: tuple[int, int]) -> np.ndarray:
    return t.pull(keys(*pairs), admit=False)


def test_fixed_spaces_lie_one_after_the_other_behind_the_zero_row() -> None:
    t = table()
    assert t.arena.first_rows.tolist() == [1, -1, 5]
    assert t.lookup(keys((0, 0), (0, 3), (2, 0), (2, 2)), admit=False).tolist() == [1, 4, 5, 7]
    assert t.num_rows == 7
    assert not t.arena.weights[0].any()


def test_pulled_rows_are_a_copy() -> None:
    t = table()
    pulled = values(t, (0, 1))
    pulled[:] = 9
    assert not (values(t, (0, 1)) == 9).any()


def test_first_values_do_not_depend_on_the_order_of_arrival_or_on_growth() -> None:
    ids = [(1, key) for key in (5, -1, 2**60, 77, 3, 12)]
    at_once, one_by_one = table(capacity=100), table(capacity=1)
    at_once.pull(keys(*ids), admit=True)
    for pair in reversed(ids):
        one_by_one.pull(keys(pair), admit=True)
    np.testing.assert_array_equal(values(at_once, *ids), values(one_by_one, *ids))
    assert len(np.unique(values(at_once, *ids))) == 24
    assert not np.array_equal(values(table(seed=4), (0, 0)), values(table(), (0, 0)))


def test_growth_keeps_rows_state_and_metadata() -> None:
    t = table(capacity=1)
    train(t, (1, 0), (0, 2), gradient=0.25)
    before, metadata = values(t, (1, 0), (0, 2)), t.arena.metadata[[3, 8]].copy()
    capacity = t.arena.capacity
    train(t, *[(1, key) for key in range(1, 400)])
    assert t.arena.capacity > capacity
    np.testing.assert_array_equal(values(t, (1, 0), (0, 2)), before)
    np.testing.assert_array_equal(t.arena.metadata[[3, 8]], metadata)
    assert t.num_rows == 7 + 400
    assert t.num_bytes > t.arena.capacity * (4 * 4 + 24)
    assert t.weights.data_ptr() == t.arena.weights.ctypes.data


def test_push_updates_rows_and_metadata_of_its_keys_only() -> None:
    t = table()
    before = values(t, (0, 0), (0, 1), (2, 1))
    batch = keys((0, 0), (2, 1), counts=[5, 1])
    t.pull(batch, admit=True)
    t.push(batch, np.full((2, 4), 2, dtype=np.float32))
    np.testing.assert_allclose(values(t, (0, 0), (0, 1), (2, 1)), before - np.array([[2], [0], [2]]), rtol=1e-6)
    seen = t.arena.metadata
    assert seen["frequency"].tolist()[:7] == [0, 5, 0, 0, 0, 0, 1]
    assert seen["version"].tolist()[:7] == [0, 1, 0, 0, 0, 0, 1]
    assert seen["last_seen"].tolist()[:7] == [0] * 7
    train(t, (0, 0))
    assert t.arena.metadata["last_seen"][1] == 1


def test_frequency_stops_at_its_largest_value() -> None:
    t = table()
    for _ in range(3):
        t.pull(keys((0, 0), counts=[2**30]), admit=True)
    assert t.arena.metadata["frequency"][1] == 2**31 - 1


def test_an_id_reads_zeros_and_learns_nothing_until_it_is_admitted() -> None:
    t = table(admission_count=3)
    for _ in range(2):
        train(t, (1, 9))
        assert not values(t, (1, 9)).any()
        assert t.num_rows == 7
    t.pull(keys((1, 9)), admit=True)
    fresh = EmbeddingTable({"item": t.spaces["item"].model_copy(update={"admission_count": 1})}, 4, seed=3)
    fresh.pull(keys((0, 9)), admit=True)
    np.testing.assert_array_equal(values(t, (1, 9)), values(fresh, (0, 9)))
    assert t.num_rows == 8
    assert not t.arena.weights[0].any()


def test_ids_not_seen_for_some_windows_are_evicted_and_begin_anew() -> None:
    t = table(evict_after=2)
    freed = []
    for window in range(6):
        train(t, (1, 2))
        if window in (0, 1):
            train(t, (1, 1))
        freed.append(t.end_window())
    assert freed == [0, 0, 0, 1, 0, 0]  # seen in windows 0 and 1, not in 2 and 3
    assert not values(t, (1, 1)).any()
    assert values(t, (1, 2)).any()
    assert values(t, (0, 0)).any(), "fixed spaces keep their rows"
    trained = table()
    train(trained, (1, 1), gradient=0.0)
    train(t, (1, 1), gradient=0.0)
    np.testing.assert_array_equal(values(t, (1, 1)), values(trained, (1, 1)))
    assert t.num_rows == 9


def test_rows_begin_with_the_initial_state_of_their_optimizer_also_where_another_id_was() -> None:
    optimizer = AdagradConfig(initial_accumulator=0.5)
    item = TableConfig(kind="collisionless", num_embeddings=1, evict_after=1, optimizer=optimizer)
    t = EmbeddingTable(
        {"country": item.model_copy(update={"kind": "hashed", "evict_after": None}), "item": item}, 4, seed=3
    )
    t.arena.complete()
    np.testing.assert_array_equal(t.arena.slots["accumulator"][1], [0.5] * 4)
    train(t, (1, 1))
    assert (t.arena.slots["accumulator"][2] == 1.5).all()
    train(t, (1, 2))
    t.end_window()
    t.end_window()
    t.pull(keys((1, 3)), admit=True)
    np.testing.assert_array_equal(t.arena.slots["accumulator"][2], [0.5] * 4)


def test_keys_pulled_before_an_eviction_are_looked_up_again_by_push() -> None:
    t = table(evict_after=1)
    train(t, (1, 1))
    batch = keys((1, 1))
    t.pull(batch, admit=False)
    t.end_window()
    train(t, (0, 0))
    t.end_window()
    train(t, (1, 2))  # takes the row of 1
    before = values(t, (1, 2))
    t.push(batch, np.ones((1, 4), dtype=np.float32))
    np.testing.assert_array_equal(values(t, (1, 2)), before)


def test_consumers_see_rows_that_changed_since_they_last_looked_each_for_itself() -> None:
    t = table(evict_after=1)
    train(t, (0, 1), (1, 5))
    t.add_consumer("delta")
    assert t.dirty_rows("delta").tolist() == [2, 8], "what was trained before it joined is new to it"
    t.clear_dirty("delta")
    t.add_consumer("publisher")
    t.pull(keys((0, 2)), admit=True)
    train(t, (1, 5), (2, 0))
    assert t.dirty_rows("delta").tolist() == [5, 8]
    t.clear_dirty("publisher")
    assert t.dirty_rows("publisher").tolist() == []
    assert t.dirty_rows("delta").tolist() == [5, 8]
    t.add_consumer("delta")
    assert t.dirty_rows("delta").tolist() == [5, 8], "to join again is to stay"


def test_a_full_state_and_dirty_rows_over_it_give_the_state_of_now() -> None:
    t = table(evict_after=1)
    t.add_consumer("delta")
    train(t, (0, 1), (1, 4), (1, 5), (1, 6))
    t.end_window()
    base = t.state_dict()
    t.clear_dirty("delta")
    train(t, (1, 6), (2, 2))
    assert t.end_window() == 2  # 4 and 5 lose their rows
    train(t, (1, 7))  # and one of the rows has a new id
    delta = t.state_dict(t.dirty_rows("delta"))
    assert len(delta["rows"]) < t.num_rows
    merged = {row: base["weights"][i] for i, row in enumerate(base["rows"].tolist())}
    merged |= {row: delta["weights"][i] for i, row in enumerate(delta["rows"].tolist())}
    for space, row in zip(delta["spaces"], delta["rows"].tolist(), strict=True):
        if space < 0:
            del merged[row]
    now = t.state_dict()
    assert sorted(merged) == now["rows"].tolist()
    np.testing.assert_array_equal(np.stack([merged[row] for row in sorted(merged)]), now["weights"])


def test_rows_beyond_two_to_the_31_elements_are_addressed(tmp_path: Path) -> None:
    num_rows, dim = 2**27 + 8, 16
    with open(tmp_path / "rows", "w+b") as file:  # 8 GiB of holes: pages that are never touched take no space
        file.truncate(num_rows * dim * 4)
        weights = np.asarray(np.memmap(file, dtype=np.float32, shape=(num_rows, dim)))
    rows = np.array([1, num_rows - 1])
    gradients = np.array([[1] * dim, [2] * dim], dtype=np.float32)
    build_optimizer([SGD], dim).apply(weights, {}, rows, np.zeros(2, np.int32), gradients, 1, Rounding.of("fp32", 0, 1))
    out = np.empty((2, dim), dtype=np.float32)
    _gather(weights, rows, FP32, out)
    np.testing.assert_array_equal(out, -gradients)
    np.testing.assert_array_equal(weights[-1], -gradients[1])
    assert not weights[num_rows - 2].any()
