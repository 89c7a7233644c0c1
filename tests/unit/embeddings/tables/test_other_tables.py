"""Saved rows move to a group of other tables: tables in both train on bit for bit, others begin anew or are gone."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from headrace.embeddings import AdamConfig, Keys, TableConfig, TableGroup
from headrace.embeddings.shards.plan import make_plan
from headrace.embeddings.shards.table_group import TableGroupSpec, make_part, parts_of
from headrace.embeddings.tables.parts import header_with_tables, join_parts, rows_of_tables, with_tables
from headrace.embeddings.tables.state import Columns, TableGroupHeader
from headrace.errors import CheckpointError, HeadraceError

SEED = 3
OPTIONS: dict[str, dict[str, Any]] = {
    "country": {"kind": "direct", "num_embeddings": 40},
    "item": {"kind": "collisionless", "num_embeddings": 2, "admission_count": 2, "evict_after": 2},
    "user": {"kind": "hashed", "num_embeddings": 30},
    "shop": {"kind": "hashed", "num_embeddings": 20},
}
WAS, NOW = ("country", "item", "user"), ("user", "shop", "item")


def tables(*names: str, **changed: dict[str, Any]) -> list[TableConfig]:
    return [
        TableConfig(name=name, embedding_dim=4, optimizer=AdamConfig(), **OPTIONS[name] | changed.get(name, {}))
        for name in names
    ]


def group_of(*names: str) -> TableGroup:
    return TableGroup(tables(*names), seed=SEED)


def keys_of(group: TableGroup, names: tuple[str, ...], seed: int) -> Keys:
    """Ten keys of each table, with counts; the same ids for any group."""
    parts = []
    for name in names:
        rng = np.random.default_rng([seed, *name.encode()])
        number = [table.name for table in group.tables].index(name)
        ids = rng.permutation(OPTIONS[name]["num_embeddings"] if name != "item" else 60)[:10]
        parts.append((np.full(10, number, np.int32), ids.astype(np.int64), rng.integers(1, 3, 10).astype(np.int32)))
    return Keys(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def train(group: TableGroup, names: tuple[str, ...], steps: range) -> None:
    """Steps that depend on nothing else; a window ends after each seventh."""
    for step in steps:
        gradients = np.random.default_rng(step).normal(size=(10 * len(names), 4)).astype(np.float32)
        group.update(keys_of(group, names, step), gradients)
        if step % 7 == 6:
            group.end_window()


def moved(state: Columns, *names: str) -> Columns:
    header = header_with_tables(state, TableGroupHeader.of(tables(*names), SEED))
    assert header is not None
    return dict(with_tables(state, header))


def contents(state: Columns, *names: str) -> dict[tuple[str, int], list[npt.NDArray[Any]]]:
    """What is known of each id of some tables, with or without a row; versions are left out."""
    saved = [table["name"] for table in TableGroupHeader.read(state).tables]
    known = {}
    for prefix in ("", "pending."):
        columns = [name for name in sorted(state) if _has(prefix, name)]
        for place, (table, key) in enumerate(zip(state[f"{prefix}tables"], state[f"{prefix}ids"], strict=True)):
            if saved[table] in names:
                known[saved[table], int(key)] = [np.array(state[column][place]) for column in columns]
    return known


def _has(prefix: str, name: str) -> bool:
    if prefix:
        return name == "pending.sightings"
    return name in ("weights", "frequency") or name.startswith("slot.")


def assert_same(one: dict[Any, list[npt.NDArray[Any]]], other: dict[Any, list[npt.NDArray[Any]]]) -> None:
    assert one.keys() == other.keys() != set()
    for key, values in one.items():
        for mine, theirs in zip(values, other[key], strict=True):
            np.testing.assert_array_equal(mine, theirs, err_msg=str(key))


@pytest.mark.parametrize("now", [NOW, ("user", "item", "country"), ("shop", *WAS)])
def test_tables_in_both_groups_train_on_bit_for_bit(now: tuple[str, ...]) -> None:
    before, after = group_of(*WAS), group_of(*now)
    train(before, WAS, range(25))
    after.load_state_dict(moved(before.state_dict(), *now))
    kept = tuple(name for name in WAS if name in now)
    assert_same(contents(before.state_dict(), *kept), contents(after.state_dict(), *kept))
    assert len(after.state_dict()["pending.ids"]) > 0
    for group in (before, after):
        train(group, kept, range(25, 50))
    assert_same(contents(before.state_dict(), *kept), contents(after.state_dict(), *kept))


def test_a_new_table_begins_anew_and_a_dropped_one_is_gone() -> None:
    before, after = group_of(*WAS), group_of(*NOW)
    train(before, WAS, range(9))
    state = moved(before.state_dict(), *NOW)
    assert rows_of_tables(before.state_dict())["country"] > 0
    assert rows_of_tables(state) == {
        "user": rows_of_tables(before.state_dict())["user"],
        "shop": 0,
        "item": rows_of_tables(before.state_dict())["item"],
    }
    after.load_state_dict(state)
    alone = group_of("shop")
    np.testing.assert_array_equal(after.read(keys_of(after, ("shop",), 1)), alone.read(keys_of(alone, ("shop",), 1)))
    assert after.step == before.step


@pytest.mark.parametrize("num_shards", [1, 3])
def test_parts_move_like_the_whole_group(num_shards: int) -> None:
    spec = TableGroupSpec(tables(*WAS), SEED)
    plan, whole = make_plan(spec.tables, num_shards), group_of(*WAS)
    shards = [make_part(spec, plan, shard) for shard in range(num_shards)]
    for step in range(9):
        keys = keys_of(whole, WAS, step)
        gradients = np.random.default_rng(step).normal(size=(len(keys), 4)).astype(np.float32)
        routes = plan.route(keys)
        for number, shard in enumerate(shards):
            places = routes.of(number)
            shard.update(keys.take(places), np.ascontiguousarray(gradients[places]))
        whole.update(keys, gradients)
    parts = [moved(parts_of(shard, spec)[0], *NOW) for shard in shards]
    assert all("rows" not in part for part in parts)
    joined, state = group_of(*NOW), moved(whole.state_dict(), *NOW)
    joined.load_state_dict(join_parts(parts))
    assert_same(contents(joined.state_dict(), *NOW), contents(state, *NOW))


def test_consumers_of_changes_read_everything_again_because_tables_have_other_numbers() -> None:
    before, after = group_of(*WAS), group_of(*NOW)
    train(before, WAS, range(9))
    before.acknowledge("replica", before.version)
    after.load_state_dict(moved(before.state_dict(), *NOW))
    with pytest.raises(HeadraceError, match=f"changes since version {before.version} are no longer available"):
        list(after.changes(before.version))
    assert sum(len(block.ids) for block in after.changes()) == len(after.state_dict()["ids"])


def test_a_group_that_has_the_tables_already_needs_no_move() -> None:
    assert header_with_tables(group_of(*WAS).state_dict(), TableGroupHeader.of(tables(*WAS), SEED)) is None


@pytest.mark.parametrize(
    ("group", "said"),
    [
        (
            TableGroupHeader.of(tables("shop", "user", user={"num_embeddings": 31}), SEED),
            "user.num_embeddings was saved",
        ),
        (TableGroupHeader.of(tables("shop", "user"), 4), "seed was saved as 3, but the job says 4"),
    ],
)
def test_a_table_that_is_kept_must_not_differ(group: TableGroupHeader, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        header_with_tables(group_of(*WAS).state_dict(), group)
