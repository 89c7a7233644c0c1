"""Tables under a budget: the cap, shared rows, moves between ids and tables, consumers of changes, and resuming."""

from typing import Any

import numpy as np
import pytest
import torch

from headrace.embeddings import EmbeddingBags, EmbeddingsConfig, Keys
from headrace.embeddings.storage.device import DeviceStorage
from headrace.embeddings.tables.budgeted_table_group import BudgetedTableGroup
from headrace.embeddings.tables.lifecycle.importance import ImportanceRetention
from headrace.embeddings.tables.make_group import full_bytes_of, make_table_group
from headrace.errors import CheckpointError, ConfigError
from headrace.tensors import KeyedJaggedTensor
from headrace.testing.row_copies import RowCopy

DIM = 4


def config_of(budget: str = "6KiB", *, rows: str = "fp32", **retention: Any) -> EmbeddingsConfig:
    policy = {"kind": "importance", "half_life_rows": None, "admission": 0, "shared_ratio": 0.1, **retention}
    optimizer = {"kind": "adagrad", "lr": 0.1}
    return EmbeddingsConfig.from_dict(
        {
            "budget": budget,
            "retention": policy,
            "default": {"num_embeddings": 1000, "optimizer": optimizer, "init_scale": 0.1, "rows": rows},
        },
        where="test",
    )


def group_of(config: EmbeddingsConfig | None = None, **options: Any) -> BudgetedTableGroup:
    config = config or config_of()
    group = make_table_group(config, config.tables_of(["user", "item"], DIM), seed=3, **options)
    assert isinstance(group, BudgetedTableGroup)
    return group


def keys(table: int, *ids: int) -> Keys:
    return Keys(np.full(len(ids), table, np.int32), np.array(ids, np.int64), np.ones(len(ids), np.int32))


def train(group: BudgetedTableGroup, batch: Keys, gradient: float = 1.0) -> None:
    group.update(batch, np.full((len(batch), DIM), gradient, dtype=np.float32), num_rows=8)


def random_steps(group: BudgetedTableGroup, steps: range, *, drift: int = 0) -> None:
    for step in steps:
        random = np.random.default_rng(step)
        ids = [np.unique(random.zipf(1.2, 60) % 500) + drift for _ in range(2)]
        batch = Keys(
            np.repeat(np.arange(2, dtype=np.int32), [len(each) for each in ids]),
            np.concatenate(ids).astype(np.int64),
            np.ones(sum(map(len, ids)), np.int32),
        )
        group.update(batch, random.normal(size=(len(batch), DIM)).astype(np.float32), num_rows=60)


def assert_equal(state: dict[str, Any], other: dict[str, Any]) -> None:
    assert state.keys() == other.keys()
    for name, column in state.items():
        np.testing.assert_array_equal(column, other[name], err_msg=name)


@pytest.mark.parametrize("budget", ["600B", "1%", "6KiB", "40%"])
def test_never_a_byte_over_budget(budget: str) -> None:
    config = config_of(budget)
    group = group_of(config)
    size = group.num_bytes
    allowed = {"1%": 0.01, "40%": 0.4}.get(budget, 0) * full_bytes_of(config.tables_of(["user", "item"], DIM))
    assert size <= (allowed or {"600B": 600, "6KiB": 6144}.get(budget, 0))
    random_steps(group, range(30))
    assert group.num_bytes == size
    one_more = 4 * DIM * 2 + 16 + 12 + 6 + 4 + 6
    assert size > group.plan.budget_bytes - one_more - 150  # nothing is left unused but what rounding needs


def test_a_budget_that_is_too_small_is_refused_with_the_smallest() -> None:
    with pytest.raises(ConfigError, match=r"embeddings.budget: given 100 bytes for 2 tables, expected at least (\d+)"):
        group_of(config_of("100B"))


@pytest.mark.parametrize("budget", ["40", "0%", "-3%", "much", "nan%"])
def test_a_budget_is_a_percentage_or_a_size(budget: str) -> None:
    if budget == "40":
        config_of(budget)  # bytes
        return
    with pytest.raises(ConfigError, match=r'budget: given .*, expected a percentage such as "40%" or a size'):
        config_of(budget)


def test_a_policy_needs_a_budget_and_admission_by_count_excludes_one() -> None:
    with pytest.raises(ConfigError, match="retention: given importance without a budget"):
        EmbeddingsConfig.from_dict({"retention": {"kind": "importance"}}, where="test")
    with pytest.raises(ConfigError, match="default: given admission_count 2 with a budget"):
        EmbeddingsConfig.from_dict(
            {"budget": "40%", "default": {"kind": "collisionless", "admission_count": 2}}, where="test"
        )


def full(group: BudgetedTableGroup) -> list[int]:
    """Fill all rows with ids of table 0, each seen with a small gradient."""
    ids = list(range(group.plan.num_rows))
    train(group, keys(0, *ids), gradient=0.01)
    assert group.retention.index.num_rows == len(ids)
    return ids


def test_an_id_without_a_row_reads_and_trains_the_shared_row_of_its_table() -> None:
    group = group_of(config_of(margin=1e9))
    full(group)
    ids = range(10_000, 10_400)
    first = group.read(keys(1, *ids))
    assert len(np.unique(first, axis=0)) == group.plan.num_shared[1] < 400
    assert first.any()
    same = [key for key, row in zip(ids, first, strict=True) if (row == first[0]).all()]
    other = [key for key in ids if key not in same]
    train(group, keys(1, *same[:2]))
    after = group.read(keys(1, *ids))
    now = dict(zip(ids, after, strict=True))
    # Adagrad's first step is lr, for the sum of both gradients.
    np.testing.assert_allclose(now[same[0]], first[0] - 0.1, rtol=1e-5)
    assert all((now[key] == now[same[0]]).all() for key in same)
    np.testing.assert_array_equal([now[key] for key in other], first[[key - 10_000 for key in other]])


def test_gradients_of_ids_that_share_a_row_are_one_step_over_their_sum() -> None:
    group = group_of(config_of("1200B", margin=1e9))
    full(group)
    ids = range(10_000, 10_040)
    rows = group.read(keys(1, *ids))
    same = [key for key, row in zip(ids, rows, strict=True) if (row == rows[0]).all()][:3]
    assert len(same) == 3
    gradients = np.array([[1, 0, -2, 4], [1, 0, 1, 0], [2, 0, 0, 0]], dtype=np.float32)
    given = gradients.copy()
    group.update(keys(1, *same), gradients)
    np.testing.assert_array_equal(gradients, given)  # the caller's array stays as it is
    source = group.retention.index.resolve(keys(1, same[0]))
    assert source[0] == 0
    rows = np.zeros(1, np.int64)
    group.shared.locate(keys(1, same[0]), rows)
    np.testing.assert_allclose(group.storage.columns(rows)["slot.accumulator"][0], [16, 0, 1, 16])
    assert group.metadata.columns(rows)["frequency"].tolist() == [3]


def test_gradients_that_cannot_be_written_to_train_as_others_do() -> None:
    """Such are those of a message from another process."""
    group, other = group_of(config_of("1200B")), group_of(config_of("1200B"))
    for step in range(20):
        batch = keys(1, *range(step, step + 40))
        gradients = np.random.default_rng(step).normal(size=(40, DIM)).astype(np.float32)
        other.update(batch, gradients.copy())
        gradients.flags.writeable = False
        group.update(batch, gradients)
    assert_equal(group.state_dict(), other.state_dict())


@pytest.mark.parametrize("between", ["nothing", "another read", "eviction", "fewer rows", "more rows", "another state"])
def test_an_update_right_after_its_read_trains_what_an_update_alone_does(between: str) -> None:
    """It knows the rows from the read, unless ids may have got other ones since."""
    pair = [group_of(config_of(half_life_rows=600)) for _ in range(2)]
    other = group_of(config_of(half_life_rows=600))
    random_steps(other, range(10))  # to the version that the others have after ten steps
    for step in range(30):
        random = np.random.default_rng(step)
        ids = np.unique(random.zipf(1.2, 80) % 300)
        batch = keys(1, *ids)
        gradients = random.normal(size=(len(ids), DIM)).astype(np.float32)
        for group in pair:
            if group is pair[0]:
                group.read(batch)
            if between == "another read":
                group.read(keys(1, *range(400)))
            if between == "eviction":
                group.evict(keys(1, *ids[::3]))
            if between == "fewer rows" and step == 25:
                group.resize(group.plan.budget_bytes - 2_000)
            if between == "more rows" and step == 25:
                group.resize(group.plan.budget_bytes + 2_000)
            if between == "another state" and step == 10:
                group.load_state_dict(other.state_dict())
            group.update(batch, gradients)
    assert_equal(pair[0].state_dict(), pair[1].state_dict())


def test_what_is_read_is_what_the_update_starts_from() -> None:
    group = group_of()
    random_steps(group, range(20))
    batch = keys(1, *range(300, 380))
    before = group.read(batch)
    group.update(batch, np.zeros((80, DIM), np.float32))
    np.testing.assert_array_equal(group.read(batch), before)


def test_an_important_id_of_another_table_takes_a_row_over_with_its_shared_row_and_state() -> None:
    group = group_of()
    group.acknowledge("copy", 0)
    ids = full(group)
    newcomer = keys(1, 777)
    version = group.version
    train(group, newcomer)  # the mean norm of table 1 is its own, so the increment is one occurrence
    for _ in range(3):
        train(group, newcomer)
    assert group.retention.index.resolve(newcomer)[0] > 0
    removed = [block for block in group.changes(version) if block.is_tombstones]
    assert [block.tables.tolist() for block in removed] == [[0]]
    (gone,) = removed[0].ids.tolist()
    assert gone in ids
    assert group.retention.index.resolve(keys(0, gone))[0] == 0
    # Its row continued from the shared row and its state: four steps of Adagrad with gradient 1 in total.
    row = group.retention.index.resolve(newcomer)
    np.testing.assert_allclose(group.storage.columns(row)["slot.accumulator"], 4)


@pytest.mark.parametrize(("occurrences", "accumulator"), [(0.0, 0.0), (2.0, 0.5), (100.0, 8.0)])
def test_an_admitted_id_takes_its_part_of_the_sums_of_its_shared_row(occurrences: float, accumulator: float) -> None:
    group = group_of(config_of(margin=1e9))
    full(group)
    for _ in range(8):
        train(group, keys(1, 777))
    value = group.read(keys(1, 777))
    row = group.retention.index.rows()[-1:]
    group._start(row, keys(1, 777), np.array([occurrences], np.float32), None)
    np.testing.assert_array_equal(group.storage.columns(row)["weights"], value)
    np.testing.assert_allclose(group.storage.columns(row)["slot.accumulator"], accumulator)


def test_an_id_that_takes_a_free_row_starts_from_its_shared_row() -> None:
    group = group_of(config_of(margin=1e9))
    ids = full(group)
    for _ in range(8):
        train(group, keys(1, 777))
    before = group.read(keys(1, 777))
    group.evict(keys(0, ids[5]))
    np.testing.assert_array_equal(group.read(keys(1, 777)), before)
    train(group, keys(1, 777))
    row = group.retention.index.resolve(keys(1, 777))
    assert row[0] > 0
    np.testing.assert_allclose(group.storage.columns(row)["weights"], before - 0.1, rtol=1e-5)


def test_an_id_gets_a_free_row_once_it_is_important() -> None:
    group = group_of(config_of(admission=2.5, shared_ratio=0))
    assert group.plan.num_shared.tolist() == [1, 1]
    for _ in range(2):
        train(group, keys(1, 777))
        assert group.retention.index.num_rows == 0
    train(group, keys(1, 777))
    row = group.retention.index.resolve(keys(1, 777))
    assert row[0] > 0
    np.testing.assert_allclose(group.storage.columns(row)["slot.accumulator"], 3)  # nobody else trained the shared row
    before = group.read(keys(1, 123_456))
    train(group, keys(1, 777))
    np.testing.assert_array_equal(group.read(keys(1, 123_456)), before)


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("rows", ["fp32", "bf16", "int8"])
def test_an_admitted_id_starts_from_its_own_values_and_a_part_of_its_shared_row(ratio: float, rows: str) -> None:
    group = group_of(config_of(rows=rows, admission=2.5, shared_ratio=0, inherited_ratio=ratio))
    for _ in range(3):
        train(group, keys(1, 777))
    assert group.retention.index.resolve(keys(1, 777))[0] > 0
    shared = group.read(keys(1, 123_456))
    own = group._layout.first_values.widened(keys(1, 777), DIM)
    assert np.abs(shared).max() > 0.1
    step = {"fp32": 1e-7, "bf16": 2.0**-9, "int8": 2.0**-7}[rows]  # numbers are below 0.5
    np.testing.assert_allclose(group.read(keys(1, 777)), own + ratio * shared, rtol=0, atol=step)


def test_a_copy_that_applies_changes_reads_what_the_group_reads() -> None:
    group, copy = group_of(), RowCopy()
    group.acknowledge("copy", 0)
    for start in range(0, 60, 7):
        random_steps(group, range(start, start + 7), drift=5 * start)
        copy.apply(group.changes(copy.version))
        assert copy.version == group.version
        group.acknowledge("copy", copy.version)
    own = group.retention.index
    held = list(zip(*(each.tolist() for each in own.owners(own.rows())), strict=True))
    assert {pair for pair in copy.rows if pair[0] < 2} == set(held)
    for table, key in held:
        np.testing.assert_array_equal(copy.rows[table, key]["weights"], group.read(keys(table, key))[0])
    unknown = keys(1, 123_456)
    shared = group.shared.locate(unknown, np.zeros(1, np.int64))
    of_copy = copy.rows[int(shared.tables[0]), int(shared.ids[0])]
    np.testing.assert_array_equal(of_copy["weights"], group.read(unknown)[0])


def test_rows_follow_the_data_as_it_drifts() -> None:
    group = group_of(config_of(half_life_rows=600))
    random_steps(group, range(60))
    random_steps(group, range(60, 200), drift=10_000)
    own = group.retention.index
    ids = own.owners(own.rows())[1]
    assert (ids >= 10_000).mean() > 0.9


def test_decay_and_rescaling_change_no_decision() -> None:
    """Importance is rescaled by powers of two, so a group that has been rescaled decides as one that has not."""
    young, old = (group_of(config_of(half_life_rows=600)) for _ in range(2))
    old.retention._age = 31.0  # type: ignore[attr-defined]
    for group in (young, old):
        random_steps(group, range(40))
    assert young.retention._age > 3.9  # type: ignore[attr-defined]
    assert old.retention._age == pytest.approx(young.retention._age - 1, abs=1e-6)  # type: ignore[attr-defined]
    rows = young.retention.index.rows()
    first, second = (each.retention.index.owners(rows)[1].tolist() for each in (young, old))
    assert first == second


def test_a_step_moves_a_bounded_number_of_rows() -> None:
    group = group_of(config_of("400KiB"))
    full(group)
    held = group.retention.index.owners(group.retention.index.rows())[1].copy()
    newcomers = keys(1, *range(5000))
    for _ in range(4):
        train(group, newcomers)
    now = group.retention.index.owners(group.retention.index.rows())[1]
    assert 0 < (held != now).sum() <= 4 * max(64, group.plan.num_rows // 64)


@pytest.mark.parametrize(("at", "rows"), [(1, "fp32"), (12, "int8"), (25, "fp32")])
def test_training_resumes_bit_for_bit(at: int, rows: str) -> None:
    config = config_of(half_life_rows=300, rows=rows)
    once = group_of(config)
    once.acknowledge("copy", 0)
    random_steps(once, range(at), drift=0)
    saved = once.state_dict()
    random_steps(once, range(at, 40), drift=100)
    again = group_of(config)
    again.load_state_dict(saved)
    assert_equal(again.state_dict(), saved)
    random_steps(again, range(at, 40), drift=100)
    assert_equal(again.state_dict(), once.state_dict())


def test_a_state_of_another_budget_is_refused() -> None:
    state = group_of().state_dict()
    text = r"embeddings.budget was saved as 6144 bytes, policy importance, but the job says"
    with pytest.raises(CheckpointError, match=f"{text} 7168 bytes, policy importance"):
        group_of(config_of("7KiB")).load_state_dict(state)
    config = EmbeddingsConfig.from_dict(
        {"default": {"optimizer": {"kind": "adagrad"}, "kind": "collisionless"}}, where="test"
    )
    plain = make_table_group(config, config.tables_of(["user", "item"], DIM), seed=3)
    with pytest.raises(CheckpointError, match=f"{text} none"):
        plain.load_state_dict(state)


def test_evicted_ids_lose_their_rows_and_count_anew() -> None:
    group = group_of()
    group.acknowledge("copy", 0)
    ids = full(group)
    train(group, keys(0, ids[0]))
    assert group.evict(keys(0, ids[0], 123_456)) == 1
    assert group.retention.index.resolve(keys(0, ids[0]))[0] == 0
    (block,) = [block for block in group.changes(group.version - 1) if block.is_tombstones]
    assert block.ids.tolist() == [ids[0]]
    train(group, keys(1, 5))  # takes the free row
    assert group.retention.index.num_rows == group.plan.num_rows


def test_ids_not_seen_for_some_windows_give_their_rows_back() -> None:
    config = EmbeddingsConfig.from_dict(
        {
            "budget": "6KiB",
            "retention": {"kind": "importance", "admission": 0},
            "default": {"kind": "collisionless", "evict_after": 1, "num_embeddings": 1000},
        },
        where="test",
    )
    group = group_of(config)
    train(group, keys(0, 1, 2))
    group.end_window()
    train(group, keys(0, 2))
    assert group.end_window() == 1
    assert group.retention.index.owners(group.retention.index.rows())[1].tolist() == [2]


def test_tensors_on_a_device_train_as_arrays_do() -> None:
    host, device = group_of(), group_of(make_storage=DeviceStorage.on("cpu"))
    for step in range(30):
        random = np.random.default_rng(step)
        ids = np.unique(random.zipf(1.2, 60) % 300)
        gradients = random.normal(size=(len(ids), DIM)).astype(np.float32)
        host.update(keys(1, *ids), gradients)
        device.update(keys(1, *ids), torch.from_numpy(gradients))
    batch = keys(1, *range(300))
    np.testing.assert_allclose(device.read(batch).numpy(), host.read(batch), rtol=1e-4, atol=1e-6)
    moved = device.moved_to(DeviceStorage.on("cpu"))
    assert_equal(moved.state_dict(), device.state_dict())


def test_a_gradient_that_is_not_finite_gives_no_importance() -> None:
    group = group_of()
    full(group)
    train(group, keys(1, 9), gradient=np.inf)
    train(group, keys(1, 9), gradient=np.nan)
    assert group.retention.index.resolve(keys(1, 9))[0] == 0
    for _ in range(4):
        train(group, keys(1, 10))
    assert group.retention.index.resolve(keys(1, 10))[0] > 0


def test_a_module_with_a_budget_trains_ids_without_hashing_them() -> None:
    bags = EmbeddingBags(config_of(), ["user"], DIM, seed=3)
    batch = (KeyedJaggedTensor.from_lists({"user": [[2**40], [7, 7]]}),)
    bags(batch).sum().backward()
    bags.apply_gradients()
    group = bags.table_group
    assert isinstance(group, BudgetedTableGroup)
    assert sorted(group.retention.index.owners(group.retention.index.rows())[1].tolist()) == [7, 2**40]


def test_rows_that_tables_gain_and_lose_add_up() -> None:
    group = group_of()
    random_steps(group, range(40), drift=0)
    group.evict(keys(0, *range(1, 20)))
    random_steps(group, range(40, 60), drift=300)
    tables = group.rows_by_table()
    assert set(tables) == {"user", "item"}
    assert sum(table.rows for table in tables.values()) == group.retention.index.num_rows
    assert all(table.lost > 0 and table.gained - table.lost == table.rows for table in tables.values())


def test_a_delta_after_a_change_of_size_has_everything_even_if_an_earlier_one_is_complete_only_then() -> None:
    """A partition that shrinks has other row numbers, which a delta on top of earlier ones would not have."""
    group = group_of()
    random_steps(group, range(20))
    written = group.delta().version
    random_steps(group, range(20, 25))
    group.end_window()
    group.resize(group.plan.budget_bytes - 1_000)
    group.mark_saved(written)
    delta = group.delta()
    assert delta.since == 0
    assert sorted(delta.rows["rows"]) == sorted(group.state_dict()["rows"])
    group.mark_saved(delta.version)
    random_steps(group, range(25, 26))
    assert group.delta().since == delta.version


def test_a_smaller_budget_keeps_the_most_important_ids_with_their_rows_and_a_larger_one_keeps_all() -> None:
    group = group_of(config_of(half_life_rows=600))
    group.acknowledge("copy", 0)
    random_steps(group, range(40))
    retention = group.retention
    assert isinstance(retention, ImportanceRetention)
    rows, version = retention.index.rows(), group.version
    tables, ids = retention.index.owners(rows)
    importance = retention.importance[rows - 1 - group.shared.num_rows]
    before = dict(zip(zip(tables.tolist(), ids.tolist(), strict=True), importance.tolist(), strict=True))
    values = {pair: group.read(keys(*pair)) for pair in before}
    place_of = dict(zip(before, (rows - 1 - group.shared.num_rows).tolist(), strict=True))
    hand = retention._hand
    group.version += 1  # as the end of a window does
    num_gone = group.resize(group.plan.budget_bytes - 1_500)
    index = retention.index
    held = set(zip(*(each.tolist() for each in index.owners(index.rows())), strict=True))
    assert num_gone == len(before) - len(held) > 10
    assert min(before[pair] for pair in held) >= max(before[pair] for pair in before.keys() - held)
    assert retention._hand == sum(place_of[pair] < hand for pair in held), "the hand goes on where it was"
    removed = [block for block in group.changes(version) if block.is_tombstones]
    assert {pair for block in removed for pair in zip(block.tables.tolist(), block.ids.tolist(), strict=True)} == (
        before.keys() - held
    )
    assert group.resize(group.plan.budget_bytes + 3_000) == 0
    assert group.num_bytes <= group.plan.budget_bytes
    for pair in held:
        np.testing.assert_array_equal(group.read(keys(*pair)), values[pair])
    random_steps(group, range(40, 80))
    assert group.retention.index.num_rows > len(before)


def arrays_of(found: Any, seen: dict[int, np.ndarray]) -> int:
    """Bytes of all arrays that an object refers to, each counted once."""
    if isinstance(found, np.ndarray):
        while isinstance(found.base, np.ndarray):
            found = found.base
        if id(found) not in seen:
            seen[id(found)] = found
    elif id(found) not in seen and not isinstance(found, str | bytes | int | float | type | np.dtype):
        seen[id(found)] = np.empty(0)
        parts = found.values() if isinstance(found, dict) else found if isinstance(found, list | tuple) else []
        for part in [*parts, *vars(found).values()] if hasattr(found, "__dict__") else parts:
            arrays_of(part, seen)
    return sum(array.nbytes for array in seen.values())


def test_what_is_allocated_is_what_is_counted() -> None:
    """Arrays are found by walking over the group, so none can be left out of `num_bytes`."""
    group = group_of(config_of("60KiB"))
    first = arrays_of(group, {})
    assert group.num_bytes <= first <= group.plan.budget_bytes + 1_000  # names, scales and seeds of the tables
    random_steps(group, range(60))
    assert arrays_of(group, {}) <= first + 100
