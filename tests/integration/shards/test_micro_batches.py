"""A step that trains micro-batches while rows of others are fetched ends as the step that waits for all rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from served_tables import Serve
from torch import nn

from headrace.embeddings import EmbeddingsConfig, embedding_bags
from headrace.embeddings.shards.group import ShardGroup
from headrace.embeddings.shards.table_group import TableGroupSpec
from headrace.embeddings.tables.seen_keys import SeenKeys
from headrace.errors import HeadraceError, ShardLost
from headrace.models import DCNv2Config, DeepFMConfig, DLRMConfig
from headrace.placement.lookahead import Lookahead
from headrace.placement.micro_batches import FewestMissingFirst, Split, popular_first, whole
from headrace.placement.resident_store import ResidentStore
from headrace.tensors import Batch, InverseKeyedJaggedTensor, KeyedJaggedTensor
from headrace.training.step import TrainingStep

NUM_ROWS, NUM_STEPS = 48, 12
ROUNDING = 1e-6
"""Largest difference of a parameter after all steps, as a share of the largest one of its tensor: eight times the
spacing of float32."""

OURS = FewestMissingFirst(bytes_per_part=400)
POLICIES: dict[str, Split] = {"whole": whole, "popular_first": popular_first, "fewest_missing_first": OURS}

MODELS = {
    "dlrm": DLRMConfig(embedding_dim=4, bottom=(8,), top=(8,)),
    "dcnv2": DCNv2Config(embedding_dim=4, deep=(8,), num_cross_layers=1, linear=True),
    "deepfm": DeepFMConfig(embedding_dim=4, deep=(8,)),
}
FEATURES = ("item", "user", "history", "session")

State = dict[str, npt.NDArray[np.float32]]


def model_of(name: str, *, waits: bool = True) -> nn.Module:
    """A model; with `waits`, ids of one table wait for their third occurrence."""
    tables = {"kind": "collisionless", "num_embeddings": 4, "optimizer": {"kind": "rowwise_adagrad", "lr": 0.05}}
    of_history = {"history": {"admission_count": 3 if waits else 1}}
    embeddings = EmbeddingsConfig.from_dict({"default": tables, "tables": of_history}, where="test")
    sizes: dict[str, Any] = {"num_dense": 3, "sparse_keys": FEATURES, "num_labels": 1}
    return MODELS[name].build(**sizes, embeddings=embeddings, seed=1)


def batches() -> list[Batch]:
    """Skewed ids, lists of ids, and a feature of few unique rows."""
    rng, found = np.random.default_rng(0), []
    for number in range(NUM_STEPS):
        skewed = [[[int(i)] for i in rng.zipf(1.4, NUM_ROWS) % 400] for _ in range(2)]
        lists = [[int(i) for i in rng.zipf(1.3, rng.integers(0, 4)) % 300] for _ in range(NUM_ROWS)]
        plain = KeyedJaggedTensor.from_lists({"item": skewed[0], "user": skewed[1], "history": lists})
        unique = KeyedJaggedTensor.from_lists({"session": [[int(i)] for i in rng.zipf(1.3, 7) % 100]})
        shared = InverseKeyedJaggedTensor.of_unique(unique, torch.from_numpy(rng.integers(0, 7, NUM_ROWS, np.int32)))
        dense = torch.from_numpy(rng.random((NUM_ROWS, 3), dtype=np.float32))
        labels = torch.from_numpy(rng.integers(0, 2, (NUM_ROWS, 1)).astype(np.float32))
        found.append(Batch(dense, (plain, shared), labels, torch.arange(NUM_ROWS) + number * NUM_ROWS))
    return found


@contextmanager
def kept_rows(serve: Serve, model: nn.Module, num_rows: int, *, verify: bool = False) -> Iterator[list[ResidentStore]]:
    """The model with its rows in two shards, of which the trainer keeps some."""
    bags = embedding_bags(model)
    specs = {name: TableGroupSpec(each.tables, 1) for name, each in bags.items()}
    with ShardGroup([serve() for _ in range(2)], specs) as group:
        for name, each in bags.items():
            store = ResidentStore(
                group.store(name),
                memory_bytes=0,
                version=0,
                window_starts=[0],
                seen=SeenKeys(1 << 12),
                keeps="frequent",
                verify=verify,
            )
            store._residency.capacity = num_rows
            store._rows.grow(num_rows)
            each.use_store(store)
        yield [each.store for each in bags.values() if isinstance(each.store, ResidentStore)]


def train(model: nn.Module, split: Split = whole) -> tuple[list[float], list[int]]:
    """Losses of all steps, and the number of micro-batches of each."""
    step = TrainingStep(model, torch.optim.SGD(model.parameters(), lr=0.1), precision="fp32")
    lookahead = Lookahead(list(embedding_bags(model).values()), 0, split)
    losses, num_parts = [], []
    for batch in batches():
        with lookahead.training(batch, ()) as parts:
            trained = step.train_parts(parts, len(batch))
        losses.append(sum(result.loss for _, result in trained))
        num_parts.append(len(trained))
        assert len(lookahead.waits_s) == len(trained)
    return losses, num_parts


def state_of(model: nn.Module, stores: Sequence[ResidentStore]) -> State:
    """All parameters; of rows, weights, optimizer state, versions and frequencies, by table and id."""
    state = {name: parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}
    for number, store in enumerate(stores):
        for block in store.changes(0):
            order = np.lexsort((block.ids, block.tables))
            for name, column in {"id": block.ids, "table": block.tables, **block.columns}.items():
                found = state.get(f"{number}.{name}")
                part = np.asarray(column)[order].astype(np.float64)
                state[f"{number}.{name}"] = part if found is None else np.concatenate([found, part])
    return state


def assert_equal_up_to_rounding(expected: State, found: State) -> None:
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        assert values.shape == found[name].shape, name
        np.testing.assert_allclose(found[name], values, rtol=0, atol=ROUNDING * np.abs(values).max(), err_msg=name)


@pytest.fixture(scope="module")
def unsplit() -> dict[str, tuple[list[float], State]]:
    return {}


def trained_whole(serve: Serve, name: str, known: dict[str, tuple[list[float], State]]) -> tuple[list[float], State]:
    if name not in known:
        model = model_of(name)
        with kept_rows(serve, model, 10_000) as stores:
            losses, _ = train(model)
            known[name] = losses, state_of(model, stores)
    return known[name]


@pytest.mark.parametrize("split", POLICIES)
@pytest.mark.parametrize("name", MODELS)
def test_micro_batches_train_what_the_whole_batch_trains(serve: Serve, unsplit: Any, name: str, split: str) -> None:
    """With room for few rows, so that most batches have rows that miss some; each row is also verified when read."""
    losses, expected = trained_whole(serve, name, unsplit)
    model = model_of(name)
    with kept_rows(serve, model, 120, verify=True) as stores:
        found, num_parts = train(model, POLICIES[split])
        assert stores[0].counters.fetched > 50
        state = state_of(model, stores)
    if split == "whole":
        assert found == losses
        assert set(num_parts) == {1}
        assert all(np.array_equal(expected[each], state[each]) for each in expected)
        return
    assert max(num_parts) == 2 if split == "popular_first" else max(num_parts) > 2
    assert found == pytest.approx(losses, rel=1e-6)
    assert_equal_up_to_rounding(expected, state)


def test_a_micro_batch_that_is_left_out_ends_the_step(serve: Serve) -> None:
    model = model_of("dlrm")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with kept_rows(serve, model, 120):
        step = TrainingStep(model, torch.optim.SGD(model.parameters(), lr=0.1), precision="fp32")
        batch = batches()[0]
        with pytest.raises(HeadraceError, match="micro-batches have 24 rows together, expected 48"):
            step.train_parts([batch.slice(0, 24)], len(batch))
        step.update()
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_a_gradient_that_is_dropped_is_noticed(serve: Serve, unsplit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above fails if the rows' gradients of one micro-batch are lost once."""
    _, expected = trained_whole(serve, "dlrm", unsplit)
    model = model_of("dlrm")
    original = TrainingStep.push
    steps = iter(range(NUM_STEPS))

    def push(step: TrainingStep) -> None:
        (bags,) = embedding_bags(model).values()
        if next(steps) == 5 and len(bags._pending) > 1:
            bags._pending[1].parts[0].gradient[:] = 0
        original(step)

    monkeypatch.setattr(TrainingStep, "push", push)
    with kept_rows(serve, model, 120) as stores:
        train(model, OURS)
        state = state_of(model, stores)
    with pytest.raises(AssertionError):
        assert_equal_up_to_rounding(expected, state)


def test_a_split_that_loses_rows_is_refused(serve: Serve) -> None:
    model = model_of("dlrm")
    with kept_rows(serve, model, 120), pytest.raises(ValueError, match="split: row 3 is in 0 micro-batches"):
        train(model, lambda missing: [np.delete(np.arange(len(missing)), 3)])


def test_work_that_misses_no_rows_is_done_while_they_are_fetched(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shards answer only once the first micro-batch is trained: a step that waited for all rows would never end."""
    model = model_of("deepfm")
    with kept_rows(serve, model, 120) as stores:
        train(model)
        step = TrainingStep(model, torch.optim.SGD(model.parameters(), lr=0.1), precision="fp32")
        lookahead = Lookahead(list(embedding_bags(model).values()), 0, popular_first)
        held: list[Any] = []
        for store in stores:
            pools = store.remote._readers
            for pool in pools:
                monkeypatch.setattr(pool, "submit", lambda *call, do=pool.submit: held.append((do, call)))
        trained: list[int] = []
        with lookahead.training(batches()[0], ()) as parts:
            for part in parts:
                if trained:
                    for do, call in held:
                        do(*call)
                step.forward_backward(part, NUM_ROWS)
                trained.append(len(part))
            step.push()
            step.update()
    assert held
    assert len(trained) == 2


def test_rows_that_leave_are_sent_after_all_requests_of_their_step(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise later requests would wait behind them on the link."""
    calls: list[str] = []

    def logged(name: str, do: Any) -> Any:
        return lambda *given, **named: (calls.append(name), do(*given, **named))[1]

    model = model_of("dlrm")
    with kept_rows(serve, model, 120) as (store,):
        for name in ("fetch", "put"):
            monkeypatch.setattr(store.remote, name, logged(name, getattr(store.remote, name)))
        monkeypatch.setattr(store, "place_next", logged("begin", store.place_next))
        train(model, OURS)
        monkeypatch.undo()
    steps = " ".join(calls).split("begin")[1:]
    assert len(steps) == NUM_STEPS
    assert any(step.split() == ["fetch", "fetch", "put"] for step in steps)
    assert all("put fetch" not in step for step in steps)


def test_a_shard_that_is_lost_ends_the_step_at_the_rows_that_it_has(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("dlrm")
    with kept_rows(serve, model, 120) as (store,):
        train(model)
        lost = lambda *_, **__: (_ for _ in ()).throw(ShardLost("shard 1: gone"))  # noqa: E731
        monkeypatch.setattr(store.remote._clients[1], "ask", lost)
        with pytest.raises(ShardLost, match="gone"):
            train(model, OURS)
        monkeypatch.undo()


def test_only_rows_decide_on_the_micro_batches(serve: Serve) -> None:
    """Two runs make the same ones, so that they have the same bits."""
    found = []
    for _ in range(2):
        model = model_of("dlrm")
        with kept_rows(serve, model, 120) as stores:
            losses, num_parts = train(model, OURS)
            found.append((losses, num_parts, state_of(model, stores)))
    assert found[0][:2] == found[1][:2]
    assert all(np.array_equal(found[0][2][name], found[1][2][name]) for name in found[0][2])
