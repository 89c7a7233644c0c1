"""Every key has one owner, loads are even, and a table-wise plan keeps tables together where that is balanced."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.embeddings import Keys, TableConfig
from headrace.embeddings.shards.plan import ROW_WISE, ShardingPlan, make_plan
from headrace.errors import ConfigError


def keys_of(pairs: list[tuple[int, int]]) -> Keys:
    tables, ids = zip(*pairs, strict=True) if pairs else ((), ())
    return Keys(np.array(tables, np.int32), np.array(ids, np.int64), np.ones(len(pairs), np.int32))


@settings(max_examples=60, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 2), st.integers(-(2**63), 2**63 - 1)), unique=True, max_size=60),
    num_shards=st.integers(1, 7),
    owner=st.integers(-1, 6),
)
def test_each_key_is_routed_once_in_order_to_its_owner(
    pairs: list[tuple[int, int]], num_shards: int, owner: int
) -> None:
    plan = ShardingPlan(num_shards, (ROW_WISE, min(owner, num_shards - 1), ROW_WISE))
    keys = keys_of(pairs)
    routes = plan.route(keys)
    assert sorted(routes.order) == list(range(len(pairs)))
    owners = plan.owners_of(keys.tables, keys.ids)
    for shard in range(num_shards):
        places = routes.of(shard)
        assert (owners[places] == shard).all()
        assert list(places) == sorted(places)
    if plan.owners[1] != ROW_WISE:
        assert (owners[keys.tables == 1] == plan.owners[1]).all()


def test_consecutive_ids_and_equal_ids_of_many_tables_are_spread_evenly() -> None:
    plan = ShardingPlan(8, (ROW_WISE,) * 1000)
    consecutive = plan.owners_of(np.zeros(80_000, np.int32), np.arange(80_000))
    one_id = plan.owners_of(np.arange(1000, dtype=np.int32), np.zeros(1000, np.int64))
    assert np.bincount(consecutive, minlength=8) == pytest.approx(np.full(8, 10_000), rel=0.05)
    assert np.bincount(one_id, minlength=8) == pytest.approx(np.full(8, 125), rel=0.4)


def test_a_table_wise_plan_balances_rows_and_traffic_and_spreads_the_giant() -> None:
    sizes = {"giant": 1_000_000, **{f"s{i}": 10_000 * (i + 1) for i in range(12)}}
    tables = [TableConfig(name=name, num_embeddings=size) for name, size in sizes.items()]
    traffic = {name: 10.0 if name == "s0" else 1.0 for name in sizes}
    plan = make_plan(tables, 3, kind="table_wise", traffic=traffic)
    assert plan.owners[0] == ROW_WISE
    assert ROW_WISE not in plan.owners[2:]
    rows = [sum(size for size, owner in zip(sizes.values(), plan.owners, strict=True) if owner == s) for s in range(3)]
    assert max(rows) < 1.6 * min(rows)


def test_a_plan_names_what_is_wrong_with_it() -> None:
    with pytest.raises(ConfigError, match=r"traffic\.itms: unknown, expected one of: items"):
        make_plan([TableConfig(name="items")], 2, kind="table_wise", traffic={"itms": 1.0})
    with pytest.raises(ConfigError, match=r"2 shards, owners \[2\]; expected each owner in 0\.\.1"):
        ShardingPlan(2, (2,))
