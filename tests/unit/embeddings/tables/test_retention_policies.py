"""Every retention policy keeps the budget, resumes bit for bit, and tells consumers; and what each is for."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from headrace.embeddings import EmbeddingsConfig, Keys, TableGroup
from headrace.embeddings.storage.device import DeviceStorage
from headrace.embeddings.storage.host import HostStorage
from headrace.embeddings.tables.budgeted_table_group import BudgetedTableGroup
from headrace.embeddings.tables.lifecycle.qr import CompositionalTableGroup, QRConfig
from headrace.embeddings.tables.make_group import budget_bytes_of, keyed_tables, make_table_group
from headrace.errors import ConfigError, HeadraceError
from headrace.registry import RETENTION_POLICIES
from headrace.testing.row_copies import RowCopy

DIM = 4
POLICIES = list(RETENTION_POLICIES)
MOVING = ["importance", "adaembed", "cafe"]
NUM_IDS = 400


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("counts") / "counts.parquet"
    columns = {"table": ["item"] * NUM_IDS, "id": range(NUM_IDS), "count": [NUM_IDS - key for key in range(NUM_IDS)]}
    pq.write_table(pa.table(columns), file)
    return file


def config_of(policy: str, counts: Path, budget: str = "40%", **settings: Any) -> EmbeddingsConfig:
    defaults: dict[str, dict[str, Any]] = {
        "importance": {"half_life_rows": 600},
        "adaembed": {"decay_every": 7, "profile_every": 2},
        "frequency": {"counts": str(counts)},
        "cafe": {"sifter_ratio": 0.3, "threshold": 1.2},
    }
    values = {
        "budget": budget,
        "retention": {"kind": policy, **defaults.get(policy, {}), **settings},
        "default": {"num_embeddings": NUM_IDS, "optimizer": {"kind": "adagrad"}, "init_scale": 0.1},
    }
    return EmbeddingsConfig.from_dict(values, where="test")


def group_of(config: EmbeddingsConfig, **options: Any) -> TableGroup:
    return make_table_group(config, config.tables_of(["item", "user"], DIM), seed=3, **options)


def batch_of(group: TableGroup, step: int, drift: int = 0) -> tuple[Keys, np.ndarray]:
    """Two tables of Zipf ids, within the sizes of tables that hash."""
    random = np.random.default_rng(step)
    sizes = [NUM_IDS if table.kind != "hashed" else table.num_embeddings for table in group.tables[:2]]
    if isinstance(group, CompositionalTableGroup):
        sizes = [NUM_IDS, NUM_IDS]
    ids = [np.unique((random.zipf(1.2, 50) + drift) % size) for size in sizes]
    keys = Keys(
        np.repeat(np.arange(2, dtype=np.int32), [len(each) for each in ids]),
        np.concatenate(ids).astype(np.int64),
        np.ones(sum(map(len, ids)), np.int32),
    )
    return keys, random.normal(size=(len(keys), DIM)).astype(np.float32)


def run(group: TableGroup, steps: range, drift: int = 0) -> None:
    for step in steps:
        keys, gradients = batch_of(group, step, drift)
        group.update(keys, gradients, num_rows=50)


@pytest.mark.parametrize("policy", POLICIES)
def test_it_never_takes_a_byte_more_than_the_budget(policy: str, counts: Path) -> None:
    config = config_of(policy, counts)
    group = group_of(config)
    allowed = budget_bytes_of(config, config.tables_of(["item", "user"], DIM))
    assert allowed is not None
    for start in range(0, 40, 10):
        assert 0.9 * allowed < group.num_bytes <= allowed
        run(group, range(start, start + 10), drift=start)


@pytest.mark.parametrize("policy", POLICIES)
def test_training_resumes_bit_for_bit(policy: str, counts: Path) -> None:
    config = config_of(policy, counts)
    once, again = group_of(config), group_of(config)
    once.acknowledge("copy", 0)
    run(once, range(25))
    saved = once.state_dict()
    run(once, range(25, 50), drift=100)
    run(again, range(3))  # what it had is gone after loading
    again.load_state_dict(saved)
    resaved = again.state_dict()
    run(again, range(25, 50), drift=100)
    for first, second in ((resaved, saved), (again.state_dict(), once.state_dict())):
        assert first.keys() == second.keys()
        for name, column in first.items():
            np.testing.assert_array_equal(column, second[name], err_msg=name)


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_read_is_what_the_update_starts_from(policy: str, counts: Path) -> None:
    group = group_of(config_of(policy, counts))
    run(group, range(20))
    keys, gradients = batch_of(group, 77)
    before = group.read(keys)
    group.update(keys, np.zeros_like(gradients), num_rows=50)
    np.testing.assert_allclose(group.read(keys), before, atol=1e-7)


@pytest.mark.parametrize("policy", MOVING)
def test_a_copy_that_applies_changes_has_the_rows_of_the_group(policy: str, counts: Path) -> None:
    group, copy = group_of(config_of(policy, counts, "30%")), RowCopy()
    assert isinstance(group, BudgetedTableGroup)
    group.acknowledge("copy", 0)
    for start in range(0, 120, 5):
        run(group, range(start, start + 5), drift=3 * start)
        copy.apply(group.changes(copy.version))
        assert copy.version == group.version
        group.acknowledge("copy", copy.version)
    assert copy.num_tombstones > 10
    rows = group.retention.index.rows()
    owners = zip(*(each.tolist() for each in group.retention.index.owners(rows)), strict=True)
    held = dict(zip(owners, group.storage.columns(rows)["weights"], strict=True))
    own = {pair: row["weights"] for pair, row in copy.rows.items() if pair[0] < 2}
    assert own.keys() == held.keys()
    for pair, row in held.items():
        np.testing.assert_array_equal(own[pair], row)


@pytest.mark.parametrize("policy", ["importance", "adaembed", "cafe", "frequency", "hash"])
def test_evicted_ids_begin_anew(policy: str, counts: Path) -> None:
    group = group_of(config_of(policy, counts))
    run(group, range(10))
    keys = Keys(np.zeros(3, np.int32), np.array([1, 2, 3]), np.zeros(3, np.int32))
    before = group.read(keys)
    assert group.evict(keys) == 3
    assert not (group.read(keys) == before).all(axis=1).any()
    assert group.evict(Keys(np.zeros(1, np.int32), np.array([100]), np.zeros(1, np.int32))) <= 1
    run(group, range(10, 20))


@pytest.mark.parametrize("policy", ["adaembed", "frequency"])
def test_pruned_ids_read_zeros(policy: str, counts: Path) -> None:
    group = group_of(config_of(policy, counts))
    assert isinstance(group, BudgetedTableGroup)
    run(group, range(60))
    keys = Keys(np.zeros(NUM_IDS, np.int32), np.arange(NUM_IDS), np.ones(NUM_IDS, np.int32))
    is_pruned = group.retention.index.resolve(keys) == 0
    assert 0 < is_pruned.sum() < NUM_IDS
    assert not group.read(keys)[is_pruned].any()
    assert group.read(keys)[~is_pruned].any()


def test_adaembed_starts_admitted_rows_at_zero_in_one_step(counts: Path) -> None:
    group = group_of(config_of("adaembed", counts, profile_every=10, decay_every=1000))
    assert isinstance(group, BudgetedTableGroup)
    num_rows = group.plan.num_rows
    assert 80 < num_rows < 300
    old = Keys(np.zeros(num_rows, np.int32), np.arange(num_rows), np.ones(num_rows, np.int32))
    gradients = np.full((num_rows, DIM), 0.01, np.float32)
    gradients[: num_rows // 2] *= 0.01  # after normalisation, these are the weakest of all
    group.update(old, gradients)
    new = Keys(np.ones(50, np.int32), np.arange(50), np.ones(50, np.int32))
    for step in range(2, 10):
        group.update(new, np.ones((50, DIM), np.float32))
        assert not group.retention.index.resolve(new).any(), step
    group.update(new, np.ones((50, DIM), np.float32))  # the tenth step looks at the cut-off
    assert group.retention.index.resolve(new).all()
    assert not group.read(new).any()


def test_frequency_has_the_ids_with_the_highest_counts(counts: Path) -> None:
    group = group_of(config_of("frequency", counts))
    assert isinstance(group, BudgetedTableGroup)
    index = group.retention.index
    tables, ids = index.owners(index.rows())
    assert not tables.any()
    assert sorted(ids.tolist()) == list(range(min(NUM_IDS, group.plan.num_rows)))
    with pytest.raises(ConfigError, match=r"embeddings.retention.counts: missing.parquet: "):
        group_of(config_of("frequency", Path("missing.parquet")))


def test_hash_makes_all_tables_smaller(counts: Path) -> None:
    config = config_of("hash", counts)
    tables = keyed_tables(config, config.tables_of(["item", "user"], DIM))
    assert {table.kind for table in tables} == {"hashed"}
    assert all(0.3 * NUM_IDS < table.num_embeddings < 0.4 * NUM_IDS for table in tables)


@pytest.mark.parametrize("policy", ["hash", "qr", "cafe", "adaembed"])
def test_a_budget_that_is_too_small_is_refused_with_the_smallest(policy: str, counts: Path) -> None:
    with pytest.raises(ConfigError, match=r"embeddings.budget: given 400 bytes.*, expected at least") as error:
        group_of(config_of(policy, counts, "400B"))
    number = "".join(each for each in str(error.value).partition("at least ")[2].partition(" ")[0] if each.isdigit())
    group_of(config_of(policy, counts, f"{number}B"))


def test_qr_gives_no_two_ids_the_same_vector(counts: Path) -> None:
    group = group_of(config_of("qr", counts))
    keys = Keys(np.zeros(NUM_IDS, np.int32), np.arange(NUM_IDS), np.ones(NUM_IDS, np.int32))
    assert len(np.unique(group.read(keys), axis=0)) == NUM_IDS
    assert group.num_rows < 0.8 * NUM_IDS
    with pytest.raises(HeadraceError, match="policy qr cannot evict ids"):
        group.evict(keys)


def test_qr_moves_both_factors_along_the_gradient_of_their_product() -> None:
    tables = EmbeddingsConfig.from_dict(
        {"default": {"num_embeddings": 100, "optimizer": {"kind": "sgd", "lr": 1e-3}}}, where="test"
    ).tables_of(["item"], DIM)
    config = QRConfig()
    group = config.build(config.keyed(tables, 3000), 3000, seed=3, make_storage=DeviceStorage.on("cpu"))
    arrays = config.build(config.keyed(tables, 3000), 3000, seed=3, make_storage=HostStorage)
    random = np.random.default_rng(5)
    ids = np.array([0, 1, 50, 99])
    keys = Keys(np.zeros(4, np.int32), ids, np.ones(4, np.int32))
    gradients = random.normal(size=(4, DIM)).astype(np.float32)
    before = arrays.read(keys)
    arrays.update(keys, gradients)
    group.update(keys, torch.from_numpy(gradients))
    np.testing.assert_allclose(group.read(keys).numpy(), arrays.read(keys), rtol=1e-5, atol=1e-7)
    moved = arrays.read(keys) - before
    assert (np.einsum("ud,ud->u", moved, gradients) < 0).all()
