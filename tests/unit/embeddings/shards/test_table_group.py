"""A shard's table group holds its own keys only, and parts make the group of one process again."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.embeddings import AdamConfig, Keys, RowWiseAdagradConfig, TableConfig, TableGroup
from headrace.embeddings.shards.plan import ShardingPlan, make_plan
from headrace.embeddings.shards.request_checks import check_keys
from headrace.embeddings.shards.table_group import TableGroupSpec, load_part, make_part, parts_of
from headrace.embeddings.tables.parts import join_parts
from headrace.embeddings.tables.state import Columns
from headrace.errors import CheckpointError, ShardError

ADAM = AdamConfig(lr=0.1)
SPEC = TableGroupSpec(
    [
        TableConfig(name=name, embedding_dim=3, optimizer=ADAM, **options)
        for name, options in {
            "hashed": {"num_embeddings": 40},
            "exact": {"kind": "collisionless", "num_embeddings": 2, "admission_count": 2, "evict_after": 1},
            "direct": {"kind": "direct", "num_embeddings": 20},
        }.items()
    ],
    seed=9,
)


def batch(rng: np.random.Generator) -> tuple[Keys, npt.NDArray[np.float32]]:
    pairs = np.unique(np.stack([rng.integers(0, 3, 30), rng.integers(0, 20, 30)], axis=1), axis=0)
    keys = Keys(pairs[:, 0].astype(np.int32), pairs[:, 1].copy(), rng.integers(1, 3, len(pairs)).astype(np.int32))
    return keys, rng.normal(size=(len(pairs), 3)).astype(np.float32)


class Sharded:
    """What trainer and shards do together, without a network."""

    def __init__(self, num_shards: int, kind: str = "row_wise", spec: TableGroupSpec = SPEC) -> None:
        self.plan: ShardingPlan = make_plan(spec.tables, num_shards, kind=kind)  # type: ignore[arg-type]
        self.spec = spec
        self.shards = [make_part(spec, self.plan, shard) for shard in range(num_shards)]

    def parts(self) -> list[Columns]:
        return [parts_of(shard, self.spec)[0] for shard in self.shards]

    def load(self, parts: list[Columns]) -> None:
        for number, shard in enumerate(self.shards):
            load_part(shard, parts, self.spec, self.plan, number)

    def read(self, keys: Keys) -> npt.NDArray[np.float32]:
        out = np.empty((len(keys), 3), np.float32)
        for places, part, shard in self._parts(keys):
            out[places] = shard.read(part)
        return out

    def update(self, keys: Keys, gradients: npt.NDArray[np.float32]) -> None:
        for places, part, shard in self._parts(keys):
            shard.update(part, np.ascontiguousarray(gradients[places]))

    def _parts(self, keys: Keys) -> list[tuple[npt.NDArray[np.int64], Keys, TableGroup]]:
        routes = self.plan.route(keys)
        places = [routes.of(shard) for shard in range(len(self.shards))]
        return [(at, keys.take(at), shard) for at, shard in zip(places, self.shards, strict=True)]


def train(groups: list[Sharded | TableGroup], rng: np.random.Generator, steps: int) -> None:
    for step in range(steps):
        keys, gradients = batch(rng)
        rows = [group.read(keys) for group in groups]
        assert all((each == rows[0]).all() for each in rows)
        for group in groups:
            group.update(keys, gradients)
        if step % 3 == 2:
            freed = [
                sum(shard.end_window() for shard in group.shards) if isinstance(group, Sharded) else group.end_window()
                for group in groups
            ]
            assert len(set(freed)) == 1


@settings(max_examples=15, deadline=None)
@given(
    before=st.integers(1, 4),
    after=st.integers(1, 4),
    seed=st.integers(0, 99),
    kind=st.sampled_from(["row_wise", "table_wise"]),
)
def test_parts_move_between_shards_and_one_process_and_training_goes_on_bit_for_bit(
    before: int, after: int, seed: int, kind: str
) -> None:
    rng = np.random.default_rng(seed)
    alone, sharded = TableGroup(SPEC.tables, seed=9), Sharded(before, kind)
    train([alone, sharded], rng, 7)
    parts = sharded.parts()
    resharded, joined, spread = Sharded(after), TableGroup(SPEC.tables, seed=9), Sharded(after, kind)
    resharded.load(parts)
    joined.load_state_dict(join_parts(parts))
    spread.load([alone.state_dict()])
    train([alone, sharded, resharded, joined, spread], rng, 5)


def test_a_shard_makes_rows_for_its_own_keys_only_when_they_are_trained() -> None:
    sharded = Sharded(2)
    keys = Keys(np.zeros(40, np.int32), np.arange(40), np.ones(40, np.int32))
    for each in (keys, keys.unseen()):
        assert (sharded.read(each) == TableGroup(SPEC.tables, seed=9).read(each)).all(), "rows exist before"
    assert sum(shard.num_rows for shard in sharded.shards) == 0
    sharded.update(keys, np.ones((40, 3), np.float32))
    assert sum(shard.num_rows for shard in sharded.shards) == 40
    assert min(shard.num_rows for shard in sharded.shards) > 8


@pytest.mark.parametrize("rows", ["bf16", "fp16", "int8"])
def test_rows_kept_in_16_bits_begin_as_in_one_process(rows: str) -> None:
    values = {"name": "a", "embedding_dim": 3, "num_embeddings": 40, "rows": rows}
    tables = [TableConfig.from_dict(values, where="test")]
    keys = Keys(np.zeros(40, np.int32), np.arange(40), np.ones(40, np.int32))
    shard = make_part(TableGroupSpec(tables, 9), make_plan(tables, 1), 0)
    expected = TableGroup(tables, seed=9).read(keys)
    assert (shard.read(keys) == expected).all()
    assert (shard.read(keys.unseen()) == expected).all()


@pytest.mark.parametrize("rows", ["bf16", "fp16", "int8"])
def test_rows_kept_in_16_bits_are_rounded_to_the_same_bits_in_any_shard_and_order_of_admission(rows: str) -> None:
    changed = {"rows": rows, "optimizer": RowWiseAdagradConfig(lr=0.1)}
    tables = [table.model_copy(update=changed) for table in SPEC.tables]
    alone, reordered = (TableGroup(tables, seed=9) for _ in range(2))
    sharded = Sharded(3, spec=TableGroupSpec(tables, seed=9))
    rng = np.random.default_rng(0)
    for _ in range(6):
        keys, gradients = batch(rng)
        backwards = np.arange(len(keys))[::-1].copy()
        alone.update(keys, gradients)
        sharded.update(keys, gradients)
        reordered.update(keys.take(backwards), gradients[backwards])
    every = Keys(np.repeat(np.arange(3, dtype=np.int32), 20), np.tile(np.arange(20), 3), np.zeros(60, np.int32))
    assert len(np.unique(alone.read(every))) > 100
    for other in (sharded, reordered):
        np.testing.assert_array_equal(other.read(every), alone.read(every))


def test_parts_of_different_steps_are_refused_and_so_are_those_of_another_table() -> None:
    sharded = Sharded(2)
    keys, gradients = batch(np.random.default_rng(0))
    sharded.shards[0].update(keys, gradients)
    with pytest.raises(CheckpointError, match="parts were saved at steps"):
        join_parts(sharded.parts())
    *tables, direct = SPEC.tables
    other = TableGroupSpec([*tables, direct.model_copy(update={"num_embeddings": 21})], 9)
    with pytest.raises(CheckpointError, match=r"direct\.num_embeddings was saved as 20, but the job says 21"):
        Sharded(1, spec=other).load(sharded.parts()[1:])


def test_ids_that_no_row_can_have_are_named() -> None:
    keys = Keys(np.array([1, 2], np.int32), np.array([10**12, 20]), np.ones(2, np.int32))
    with pytest.raises(ShardError, match="table direct: id 20, expected 0 <= id < 20"):
        check_keys(keys, SPEC)
