"""Embeddings on a device, in plain torch: the numbers of the host's kernels, on the CPU here and on a GPU if any."""

from typing import Any

import numpy as np
import pytest
import torch

from headrace.embeddings import EmbeddingBags, EmbeddingsConfig, Keys, TableConfig, TableGroup
from headrace.embeddings.storage.device import DeviceStorage
from headrace.embeddings.storage.device_rounding import rounded
from headrace.embeddings.storage.host import HostStorage
from headrace.embeddings.storage.row_formats import FORMATS, as_tensor, round_row, storage_dtype, stored_width
from headrace.errors import ConfigError
from headrace.tensors import InverseKeyedJaggedTensor, KeyedJaggedTensor

NAMES = ("a", "b", "c")
TABLES = {"s": {"feature_names": ["a", "b"], "pooling": {"a": "mean"}}, "c": {"pooling": "max"}}
OPTIMIZERS: list[dict[str, Any]] = [
    {"kind": "sgd", "lr": 0.3, "weight_decay": 0.1, "weight_decay_mode": "decoupled"},
    {"kind": "adagrad", "lr": 0.2, "initial_accumulator": 0.1, "weight_decay": 0.01},
    {"kind": "rowwise_adagrad", "lr": 0.2, "clip_row_norm": 0.7},
    {"kind": "adam", "lr": 0.02},
    {"kind": "ftrl", "lr": 0.3, "l1": 0.01, "l2": 0.1},
]


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    return str(request.param)


@pytest.fixture(params=["device", "host"])
def memory(request: pytest.FixtureRequest) -> Any:
    return request.param


def bags_of(**default: Any) -> EmbeddingBags:
    values = {"kind": "collisionless", "num_embeddings": 4, "init_scale": 0.5} | default
    config = EmbeddingsConfig.from_dict({"default": values, "tables": TABLES}, where="test")
    return EmbeddingBags(config, NAMES, 6, seed=1)


def batch(step: int, *, weighted: bool = False, deduplicated: bool = False) -> tuple[Any, ...]:
    rng = np.random.default_rng(step)
    lists = {name: [rng.integers(0, 12, rng.integers(0, 4)).tolist() for _ in range(5)] for name in NAMES}
    kjt = KeyedJaggedTensor.from_lists(lists)
    if weighted:
        kjt = KeyedJaggedTensor.from_lengths(kjt.keys, kjt.values, kjt.lengths, torch.rand(kjt.values.numel()) + 0.5)
    if not deduplicated:
        return (kjt,)
    inverse = torch.tensor([0, 0, 3, 1, 3], dtype=torch.int32)
    both = KeyedJaggedTensor.from_lists({name: lists[name] for name in ("a", "b")})
    return (InverseKeyedJaggedTensor.of_unique(both, inverse), KeyedJaggedTensor.from_lists({"c": lists["c"]}))


def train(bags: EmbeddingBags, steps: range, **options: Any) -> list[torch.Tensor]:
    outs = []
    for step in steps:
        out = bags(batch(step, **options))
        outs.append(out.detach().cpu())
        out.square().sum().backward()
        bags.apply_gradients()
        if step % 4 == 3 and bags.table_group is not None:
            bags.table_group.end_window()
    return outs


def assert_close(one: EmbeddingBags, other: EmbeddingBags, **tolerance: float) -> None:
    assert one.table_group is not None
    assert other.table_group is not None
    others = other.table_group.state_dict()
    for name, column in one.table_group.state_dict().items():
        if name == "weights" or name.startswith("slot."):
            np.testing.assert_allclose(others[name], column, err_msg=name, **tolerance)
        else:
            np.testing.assert_array_equal(others[name], column, err_msg=name)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: optimizer["kind"])
def test_training_on_a_device_equals_training_on_the_host(device: str, memory: Any, optimizer: dict[str, Any]) -> None:
    host = bags_of(optimizer=optimizer, admission_count=2, evict_after=1)
    there = bags_of(optimizer=optimizer, admission_count=2, evict_after=1).place_on(device, memory)
    for one, other in zip(train(host, range(9)), train(there, range(9)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert_close(host, there, rtol=1e-4, atol=1e-5)


def test_deduplicated_groups_train_on_a_device_as_on_the_host(device: str) -> None:
    host, there = bags_of(), bags_of().place_on(device)
    train(host, range(4), deduplicated=True)
    train(there, range(4), deduplicated=True)
    assert_close(host, there, rtol=1e-4, atol=1e-5)


def test_weights_partial_lookups_sequences_and_unique_rows_work_on_a_device(device: str) -> None:
    tables = {"s": {"feature_names": ["a", "b"], "pooling": {"a": "mean"}}}
    config = EmbeddingsConfig.from_dict({"tables": tables, "default": {"init_scale": 0.5}}, where="test")
    host, there = (EmbeddingBags(config, ("a", "b", "c"), 6, seed=1) for _ in range(2))
    there.place_on(device)
    torch.manual_seed(0)
    weighted = batch(3, weighted=True)
    for bags in (host, there):
        pooled = bags.pool_unique(bags.lookup(weighted), ["c"]) + bags.pool_unique(bags.lookup(weighted), ["a", "b"])
        sum(part.pooled.square().sum() for part in pooled).backward()  # type: ignore[union-attr]
        lookup = bags.lookup(batch(4, deduplicated=True))
        rows, offsets = bags.sequence(lookup, "b")
        assert int(offsets[-1]) == len(rows)
        unique = sum(part.pooled.sum() for part in bags.pool_unique(lookup))
        (rows.square().sum() + unique).backward()
        bags.apply_gradients()
        assert bags.table_group is not None
        assert bags.table_group.step == 1
    assert_close(host, there, rtol=1e-4, atol=1e-5)


def test_a_long_gradient_of_a_step_is_scaled_on_a_device_too(device: str) -> None:
    host, there = bags_of(), bags_of()
    limited = host.config.model_copy(update={"clip_grad_norm": 0.1})
    host, there = (EmbeddingBags(limited, NAMES, 6, seed=1) for _ in range(2))
    train(host, range(2))
    train(there.place_on(device), range(2))
    assert_close(host, there, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("row_format", ["fp32", "bf16", "fp16", "int8"])
def test_a_table_moves_to_a_device_and_back_without_a_change(device: str, memory: Any, row_format: str) -> None:
    bags = bags_of(rows=row_format)
    train(bags, range(4))
    assert bags.table_group is not None
    assert isinstance(bags.table_group.storage, HostStorage)
    since = bags.table_group.version
    bags.table_group.acknowledge("publisher", since)
    train(bags, range(4, 5))
    before, changed = bags.table_group.state_dict(), [block.ids.tolist() for block in bags.table_group.changes(since)]
    bags.place_on(device, memory)
    assert isinstance(bags.table_group.storage, DeviceStorage)
    assert bags.table_group.weights.device.type == ("cpu" if memory == "host" else device)
    assert bags.table_group.num_bytes > 0
    moved = bags.table_group.state_dict()
    bags.place_on(None)
    assert bags.table_group is not None
    assert isinstance(bags.table_group.storage, HostStorage)
    assert [block.ids.tolist() for block in bags.table_group.changes(since)] == changed
    for name, column in before.items():
        np.testing.assert_array_equal(moved[name], column, err_msg=name)
        np.testing.assert_array_equal(bags.table_group.state_dict()[name], column, err_msg=name)


@pytest.mark.parametrize("row_format", ["bf16", "fp16", "int8"])
def test_rounding_in_torch_gives_the_bits_of_the_hosts_kernel(device: str, row_format: str) -> None:
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(50, 7)) * 10.0 ** rng.integers(-7, 6, size=(50, 7))).astype(np.float32)
    values[0, :4] = 0.0, -0.0, np.nan, 7e4
    values[2] = 0
    values[3:6] = 0.1
    values[3:6, 0] = 1.983, 127 / 64, 1.985  # greatest numbers just below and above the limit of a scale
    kept = np.zeros((50, stored_width(row_format, 7)), dtype=storage_dtype(row_format))
    for row in range(50):
        used_up = values[row].copy()
        bits = used_up.view(np.uint32)
        round_row(kept, row, FORMATS[row_format], used_up, bits, np.uint64(2**63 + 11), row)
    found = rounded(torch.from_numpy(values).to(device), torch.arange(50, device=device), row_format, 2**63 + 11)
    expected = as_tensor(kept, row_format)
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=0, equal_nan=True)


def test_a_device_table_reads_and_updates_keys_without_a_row(device: str) -> None:
    late = TableConfig(name="a", embedding_dim=4, kind="collisionless", admission_count=9)
    group = TableGroup([late], seed=0, make_storage=DeviceStorage.on(device))
    keys = Keys(np.zeros(2, np.int32), np.array([5, 6]), np.ones(2, np.int32))
    assert not group.read(keys).any()  # type: ignore[union-attr]
    group.update(keys, np.ones((2, 4), dtype=np.float32))
    assert not group.read(keys.unseen()).any()  # type: ignore[union-attr]


def test_a_model_on_a_gpu_takes_its_tables_along() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    model = torch.nn.Sequential(bags_of(), torch.nn.Linear(6, 1)).to("cuda")
    assert isinstance(model[0].table_group.storage, DeviceStorage)
    model(batch(0)).sum().backward()
    model[0].apply_gradients()
    assert isinstance(model.cpu()[0].table_group.storage, HostStorage)


def test_rows_with_a_store_in_front_do_not_move() -> None:
    bags = bags_of()

    class InFront:
        def read(self, keys: Keys) -> Any: ...
        def update(self, keys: Keys, gradients: Any) -> Any: ...

    bags.store = InFront()
    with pytest.raises(ConfigError, match="rows cannot move while another store is in use"):
        bags.place_on("cpu")


def test_training_on_the_host_never_starts_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise AssertionError("CUDA was started")

    monkeypatch.setattr(torch.cuda, "_lazy_init", refuse)
    train(bags_of(), range(2))
    train(bags_of().place_on("cpu"), range(2))


@pytest.mark.parametrize("row_format", ["bf16", "fp16", "int8"])
def test_rounded_rows_are_updated_to_the_bits_of_the_host(device: str, row_format: str) -> None:
    values = {"name": "a", "embedding_dim": 6, "num_embeddings": 40, "rows": row_format}
    tables = [TableConfig.from_dict(values | {"optimizer": {"kind": "sgd", "lr": 0.5}}, where="test")]
    host, there = TableGroup(tables, seed=0), TableGroup(tables, seed=0, make_storage=DeviceStorage.on(device))
    for step in range(3):
        keys = Keys(np.zeros(40, np.int32), np.arange(40), np.ones(40, np.int32))
        gradients = np.random.default_rng(step).normal(size=(40, 6)).astype(np.float32)
        for group in (host, there):
            group.read(keys)
            group.update(keys, gradients)
    np.testing.assert_array_equal(there.state_dict()["weights"], host.state_dict()["weights"])
