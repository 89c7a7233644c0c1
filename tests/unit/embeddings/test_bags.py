"""EmbeddingBags against `nn.EmbeddingBag` on the same rows: values, gradients, and what it says when it cannot."""

import pickle
from concurrent.futures import Future
from typing import Any

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from headrace.embeddings import (
    EmbeddingBags,
    EmbeddingsConfig,
    KeyedPlan,
    Keys,
    LocalStore,
    RowWiseAdagradConfig,
    TableConfig,
    TableGroup,
    apply_gradients,
    embedding_bags,
    key_layouts,
)
from headrace.embeddings.ops.unique import unique_keys
from headrace.errors import ConfigError, DataError
from headrace.tensors import Batch, KeyedJaggedTensor

SIZE = 6
POOLINGS = ["sum", "mean", "max"]


def config(kind: str = "direct", tables: dict[str, Any] | None = None, **default: Any) -> EmbeddingsConfig:
    values = {"kind": kind, "num_embeddings": SIZE, "init_scale": 1.0, "optimizer": {"kind": "sgd", "lr": 0.5}}
    return EmbeddingsConfig.from_dict({"default": values | default, "tables": tables or {}}, where="test")


def jagged(lists: dict[str, list[list[int]]], weighted: bool = False) -> KeyedJaggedTensor:
    kjt = KeyedJaggedTensor.from_lists(lists)
    if not weighted:
        return kjt
    weights = torch.rand(kjt.values.numel(), generator=torch.Generator().manual_seed(0)) + 0.5
    return KeyedJaggedTensor.from_lengths(kjt.keys, kjt.values, kjt.lengths, weights)


def rows_of(bags: EmbeddingBags, table: int) -> torch.Tensor:
    assert bags.table_group is not None
    first = int(bags.table_group.index.first_rows[table])
    return bags.table_group.weights[first : first + SIZE].clone()


@st.composite
def three_features(draw: st.DrawFn) -> dict[str, list[list[int]]]:
    stride = draw(st.integers(1, 6))
    ids = st.lists(st.integers(0, SIZE - 1), max_size=5)
    return {name: draw(st.lists(ids, min_size=stride, max_size=stride)) for name in ("a", "b", "c")}


def plain_bag(weight: nn.Parameter, part: KeyedJaggedTensor, pooling: str) -> torch.Tensor:
    weights = part.weights
    if pooling == "mean" and weights is not None:  # torch has no weighted mean: a sum of weights over the length
        weights = weights / part.lengths.repeat_interleave(part.lengths)
        pooling = "sum"
    bag = nn.functional.embedding_bag
    return bag(part.values, weight, part.offsets[:-1], mode=pooling, per_sample_weights=weights)


@given(
    lists=three_features(), dim=st.sampled_from([1, 4, 7]), pooling=st.sampled_from(POOLINGS), weighted=st.booleans()
)
@settings(max_examples=60, deadline=None)
def test_values_and_gradients_equal_plain_embedding_bags(
    lists: dict[str, list[list[int]]], dim: int, pooling: str, weighted: bool
) -> None:
    weighted = weighted and pooling != "max"
    # a and c share a table: gradients of both meet in its rows.
    shared = [name for name in lists if name != "b"]
    tables = {"ac": {"feature_names": shared, "pooling": pooling}, "b": {"pooling": pooling}}
    bags = EmbeddingBags(config(tables=tables), list(lists), dim, seed=1)
    kjt = jagged(lists, weighted)
    shared, own = nn.Parameter(rows_of(bags, 0)), nn.Parameter(rows_of(bags, 1))
    plain_BFD = torch.stack(
        [plain_bag(weight, kjt[name], pooling) for name, weight in (("a", shared), ("b", own), ("c", shared))], dim=1
    )
    emb_BFD = bags((kjt,))
    torch.testing.assert_close(emb_BFD, plain_BFD)
    assert emb_BFD.dtype == torch.float32

    out_grad = torch.randn(emb_BFD.shape, generator=torch.Generator().manual_seed(2))
    plain_BFD.backward(out_grad)
    emb_BFD.backward(out_grad)
    bags.apply_gradients()
    torch.testing.assert_close(rows_of(bags, 0), (shared - 0.5 * shared.grad).detach())
    torch.testing.assert_close(rows_of(bags, 1), (own - 0.5 * own.grad).detach())


def test_poolings_may_differ_between_features() -> None:
    lists = {"a": [[0, 1, 1], []], "b": [[0, 1, 1], [2]], "c": [[0, 1, 1], [3, 4]]}
    tables = {"s": {"feature_names": list("abc"), "pooling": dict(zip("abc", POOLINGS, strict=True))}}
    bags = EmbeddingBags(config(tables=tables), list(lists), 4, seed=1)
    weight, kjt = nn.Parameter(rows_of(bags, 0)), jagged(lists)
    plain_BFD = torch.stack(
        [plain_bag(weight, kjt[name], pooling) for name, pooling in zip("abc", POOLINGS, strict=True)], dim=1
    )
    emb_BFD = bags((kjt,))
    torch.testing.assert_close(emb_BFD, plain_BFD)
    (plain_BFD * plain_BFD).sum().backward()
    (emb_BFD * emb_BFD).sum().backward()
    bags.apply_gradients()
    torch.testing.assert_close(rows_of(bags, 0), (weight - 0.5 * weight.grad).detach())


def test_groups_of_a_batch_are_looked_up_together() -> None:
    lists = {"a": [[0, 1], [2]], "b": [[2], [0, 0]]}
    tables = {"s": {"feature_names": ["a", "b"]}}
    one, two = (EmbeddingBags(config(tables=tables), ["a", "b"], 4, seed=1) for _ in range(2))
    outs = [one((jagged(lists),)), two((jagged({"b": lists["b"]}), jagged({"a": lists["a"]})))]
    torch.testing.assert_close(outs[0], outs[1])
    for bags, out in zip((one, two), outs, strict=True):
        out.sum().backward()
        bags.apply_gradients()
    torch.testing.assert_close(rows_of(one, 0), rows_of(two, 0))


def test_a_group_without_weights_beside_one_with_weights_counts_as_ones() -> None:
    bags = EmbeddingBags(config(), ["a", "b"], 4, seed=1)
    with_weights, without = jagged({"a": [[0, 1]]}, weighted=True), jagged({"b": [[0, 1]]})
    ones = KeyedJaggedTensor(
        without.keys, without.values, without.lengths, without.offsets, without.stride, torch.ones(2)
    )
    torch.testing.assert_close(bags((with_weights, without)), bags((with_weights, ones)))


def test_sequence_gives_a_row_per_id_and_its_gradient_adds_to_the_pooled_one() -> None:
    lists = {"history": [[1, 2, 1], [], [3]], "item": [[2], [1], [0]]}
    tables = {"s": {"feature_names": ["history", "item"]}}
    bags = EmbeddingBags(config(tables=tables), list(lists), 4, seed=1)
    weight, kjt = nn.Parameter(rows_of(bags, 0)), jagged(lists)
    lookup = bags.lookup((kjt,))
    sequence, offsets = bags.sequence(lookup, "history")
    torch.testing.assert_close(sequence, weight[torch.tensor([1, 2, 1, 3])])
    assert offsets.tolist() == [0, 3, 3, 4]

    plain = (weight[torch.tensor([1, 2, 1, 3])] ** 2).sum() + plain_bag(weight, kjt["item"], "sum").sum()
    plain.backward()
    ((sequence**2).sum() + bags.pool(lookup)[:, 1].sum()).backward()
    bags.apply_gradients()
    torch.testing.assert_close(rows_of(bags, 0), (weight - 0.5 * weight.grad).detach())


def test_training_is_bit_for_bit_the_same_for_any_number_of_threads() -> None:
    rng = np.random.default_rng(0)
    lists = {name: [(rng.zipf(1.3, rng.integers(0, 9)) % SIZE).tolist() for _ in range(300)] for name in "abc"}
    results = []
    for threads in (1, numba.config.NUMBA_NUM_THREADS):
        numba.set_num_threads(threads)
        tables = {"a": {"feature_names": ["c"], "pooling": {"a": "mean"}}, "b": {"pooling": "max"}}
        bags = EmbeddingBags(config(tables=tables, optimizer={"kind": "adagrad"}), list(lists), 8, seed=1)
        for _ in range(3):
            bags((jagged(lists),)).square().sum().backward()
            bags.apply_gradients()
        assert bags.table_group is not None
        results.append(bags.table_group.state_dict())
    for name, column in results[0].items():
        np.testing.assert_array_equal(column, results[1][name], err_msg=name)


def test_gradients_of_several_passes_are_one_step_over_their_sum() -> None:
    lists = [{"a": [[0, 1], [1]]}, {"a": [[1, 2]]}]
    settings_ = {"optimizer": {"kind": "adagrad", "lr": 0.5}}
    together, apart = (EmbeddingBags(config(**settings_), ["a"], 4, seed=1) for _ in range(2))
    together((jagged({"a": lists[0]["a"] + lists[1]["a"]}),)).sum().backward()
    for part in lists:
        apart((jagged(part),)).sum().backward()
    for bags in (together, apart):
        bags.apply_gradients()
        assert bags.table_group is not None
        assert bags.table_group.step == 1
    torch.testing.assert_close(rows_of(together, 0), rows_of(apart, 0))


@pytest.mark.parametrize("mode", ["eval", "no_grad"])
def test_nothing_changes_outside_of_training(mode: str) -> None:
    bags = EmbeddingBags(config("collisionless"), ["a"], 4, seed=1)
    assert bags.table_group is not None
    bags((jagged({"a": [[7], [8]]}),)).sum().backward()
    bags.apply_gradients()
    before = bags.table_group.state_dict()
    if mode == "eval":
        bags.eval()
    with torch.set_grad_enabled(mode == "eval"):
        out = bags((jagged({"a": [[7], [99]]}),))
    bags.apply_gradients()
    assert not out.requires_grad
    assert out[0].any()
    assert not out[1].any(), "an id without a row reads zeros"
    for name, column in bags.table_group.state_dict().items():
        np.testing.assert_array_equal(column, before[name], err_msg=name)


def test_a_dropped_pass_does_not_reach_the_next_step() -> None:
    bags = EmbeddingBags(config(), ["a"], 4, seed=1)
    before = rows_of(bags, 0)
    bags((jagged({"a": [[1]]}),)).sum().backward()
    bags.drop_gradients()
    bags.apply_gradients()
    torch.testing.assert_close(rows_of(bags, 0), before)


def test_an_id_out_of_range_is_told_with_feature_id_row_and_range() -> None:
    bags = EmbeddingBags(config(), ["a", "b"], 4, seed=1)
    with pytest.raises(DataError) as error:
        bags((jagged({"a": [[0], [1], [2]], "b": [[1], [], [3, 6]]}),))
    assert str(error.value) == (
        "feature b: id 6 in row 2 of the batch, expected 0 <= id < 6 (a direct table with num_embeddings: 6)"
    )
    assert bags.table_group is not None
    assert not bags.table_group.metadata.records["frequency"].any(), "a refused batch leaves no trace"


def test_a_missing_feature_and_weights_with_max_are_refused_by_name() -> None:
    bags = EmbeddingBags(config(tables={"a": {"pooling": "max"}}), ["a"], 4, seed=1)
    with pytest.raises(ConfigError, match=r"^feature a: not in the batch, which has: x, y$"):
        bags((jagged({"x": [[1]], "y": [[1]]}),))
    with pytest.raises(ConfigError, match=r"^feature a: pooling max with weights, expected sum or mean$"):
        bags((jagged({"a": [[1]]}, weighted=True),))
    with pytest.raises(ConfigError, match="given no sparse features"):
        EmbeddingBags(config(), [], 4, seed=1)


def test_an_empty_batch_and_a_batch_of_empty_lists_train() -> None:
    bags = EmbeddingBags(config(), ["a"], 4, seed=1)
    for lists in ([], [[], []]):
        out = bags(
            (
                KeyedJaggedTensor.from_lengths(
                    ["a"], torch.empty(0, dtype=torch.int64), torch.zeros(len(lists), dtype=torch.int32)
                ),
            )
        )
        assert out.shape == (len(lists), 1, 4)
        out.sum().backward()
        bags.apply_gradients()
        assert not out.any()


def test_a_user_loop_of_three_lines_learns() -> None:
    bags = EmbeddingBags(config("collisionless", optimizer={"kind": "rowwise_adagrad", "lr": 0.3}), ["a"], 4, seed=1)
    kjt, targets = jagged({"a": [[5], [6], [5, 6]]}), torch.tensor([1.0, -1.0, 0.0])
    losses = []
    for _ in range(30):
        loss = (bags((kjt,)).sum(dim=(1, 2)) - targets).square().mean()
        loss.backward()
        bags.apply_gradients()
        losses.append(loss.item())
    assert losses[-1] < 0.01 * losses[0]


def test_any_store_may_hold_the_rows() -> None:
    settings_, lists = config("collisionless"), {"a": [[5], [6, 5]]}

    class Recording:
        def __init__(self) -> None:
            self.local = LocalStore(TableGroup(settings_.tables_of(["a"], 4), seed=1))
            self.calls: list[tuple[str, list[int], list[int]]] = []

        def read(self, keys: Keys, *, after: int | None = None) -> Future[np.ndarray]:
            self.calls.append(("read", keys.ids.tolist(), keys.counts.tolist()))
            return self.local.read(keys, after=after)

        def update(
            self, keys: Keys, gradients: np.ndarray, *, num_rows: int = 1, lr_factor: float = 1.0
        ) -> Future[None]:
            self.calls.append(("update", keys.ids.tolist(), gradients[:, 0].tolist()))
            keys.resolved = None  # a store may not count on what it noted
            return self.local.update(keys, gradients, num_rows=num_rows, lr_factor=lr_factor)

    store = Recording()
    remote, local = EmbeddingBags(settings_, ["a"], 4, seed=1, store=store), EmbeddingBags(settings_, ["a"], 4, seed=1)
    for bags in (remote, local):
        bags((jagged(lists),)).sum().backward()
        bags.apply_gradients()
    assert store.calls == [("read", [5, 6], [2, 1]), ("update", [5, 6], [2.0, 1.0])]
    assert remote.table_group is None
    torch.testing.assert_close(remote((jagged(lists),)), local((jagged(lists),)))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_with_sum_the_size_of_its_batch_does_not_change_what_a_row_teaches(reduction: str) -> None:
    optimizer = RowWiseAdagradConfig(lr=0.1, initial_accumulator=0.01, reduction=reduction)
    table = TableConfig(name="a", num_embeddings=50, kind="direct", optimizer=optimizer)
    found = []
    for others in ([], [[2], [3], [4]]):
        bags = EmbeddingBags(EmbeddingsConfig(tables={"a": table}), ["a"], 4, seed=1)
        for _ in range(2):
            batch = [[1], *others]
            (bags((jagged({"a": batch}),)) - 1.0).square().sum(dim=(1, 2)).mean().backward()
            bags.apply_gradients()
        found.append(bags((jagged({"a": [[1]]}),)).detach())
    assert torch.allclose(*found) == (reduction == "sum")


def test_bags_are_found_in_a_model_and_updated_together() -> None:
    model = nn.ModuleDict(
        {"x": EmbeddingBags(config(), ["a"], 4, seed=1), "y": EmbeddingBags(config(), ["a"], 2, seed=1)}
    )
    found = embedding_bags(model)
    assert list(found) == ["x", "y"]
    for bags in found.values():
        bags((jagged({"a": [[1]]}),)).sum().backward()
    apply_gradients(model)
    assert [bags.table_group.step for bags in found.values() if bags.table_group is not None] == [1, 1]
    assert not list(model.parameters())
    assert not model.state_dict()


class CountedFinds:
    """How often unique keys are found."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_calls = 0

        def counted(*arguments: Any) -> Any:
            self.num_calls += 1
            return unique_keys(*arguments)

        monkeypatch.setattr("headrace.embeddings.keys.unique_keys", counted)


def batch_of(lists: dict[str, list[list[int]]]) -> Batch:
    num_rows = len(next(iter(lists.values())))
    return Batch(torch.empty(num_rows, 0), (jagged(lists),), torch.empty(num_rows, 0), torch.arange(num_rows))


class Plan:
    """Rows are lists of ids; two features hold the same."""

    def apply(self, rows: Any) -> Batch:
        return batch_of({"a": rows, "b": rows})


def test_modules_that_make_the_same_keys_of_ids_find_them_once(monkeypatch: pytest.MonkeyPatch) -> None:
    wide_config = config("hashed").first_order().model_copy(update={"clip_grad_norm": 1.0})
    model = nn.ModuleDict(
        {
            "deep": EmbeddingBags(config("hashed"), ["a", "b"], 4, seed=1),
            "wide": EmbeddingBags(wide_config, ["a", "b"], 1, seed=1),
            "other": EmbeddingBags(config("hashed"), ["a", "b"], 4, seed=2),
        }
    )
    assert len(key_layouts(model)) == 2, "another seed hashes in another way"
    finds = CountedFinds(monkeypatch)
    batch = batch_of({"a": [[1], [2, 3]], "b": [[4], []]})
    for bags in model.values():
        bags(batch)
    assert finds.num_calls == 2
    assert model["deep"].lookup(batch).parts[0].found is model["wide"].lookup(batch).parts[0].found
    assert finds.num_calls == 2


def test_keys_found_by_a_plan_are_used_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    bags = EmbeddingBags(config(), ["a", "b"], 4, seed=1)
    plain = bags(Plan().apply([[1], [2]]))
    keyed = pickle.loads(pickle.dumps(KeyedPlan(Plan(), key_layouts(bags))))
    batch = keyed.apply([[1], [2]])
    finds = CountedFinds(monkeypatch)
    assert torch.equal(bags(batch), plain)
    assert finds.num_calls == 0
    with pytest.raises(DataError, match=f"feature a: id {SIZE} in row 1 of the batch, expected 0 <= id < {SIZE}"):
        keyed.apply([[0], [SIZE]])


def test_a_plan_finds_keys_with_one_thread_and_leaves_the_others_to_whoever_calls_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bags, calls = EmbeddingBags(config(), ["a", "b"], 4, seed=1), []
    monkeypatch.setattr(numba, "get_num_threads", lambda: calls[-1] if calls else 7)
    monkeypatch.setattr(numba, "set_num_threads", calls.append)
    with pytest.raises(DataError):
        KeyedPlan(Plan(), key_layouts(bags)).apply([[SIZE]])
    assert calls == [1, 7]


def test_keys_found_by_feature_groups_train_bit_for_bit_as_those_of_the_whole_batch() -> None:
    tables = {"ac": {"feature_names": ["a", "c"]}}
    lists = {"a": [[1, 2], [1]], "b": [[3], [0, 3]], "c": [[2], []]}
    whole, parts = (EmbeddingBags(config(tables=tables), list(lists), 4, seed=1) for _ in range(2))
    for bags in (whole, parts):
        batch = batch_of(lists)
        if bags is parts:
            groups = [batch_of({name: lists[name] for name in names}) for names in ("b", "ac")]
            batch = Batch.join([group.with_keys([bags.key_layout]) for group in groups])
            assert len(bags.lookup(batch).parts) == 2
            bags.drop_gradients()
        lookup = bags.lookup(batch)
        rows, _ = bags.sequence(lookup, "c")
        some = bags.pool_unique(lookup, ["a"])
        (bags.pool(lookup).square().sum() + rows.sum() + some[0].pooled.sum()).backward()
        bags.apply_gradients()
        assert bags.table_group is not None
        assert bags.table_group.step == 1, "one update for all groups"
    untouched = EmbeddingBags(config(tables=tables), list(lists), 4, seed=1)
    assert torch.equal(whole.table_group.weights, parts.table_group.weights)  # type: ignore[union-attr]
    assert not torch.equal(whole.table_group.weights, untouched.table_group.weights)  # type: ignore[union-attr]


def test_the_features_of_one_lookup_share_a_gradient_for_each_key() -> None:
    """A key in a pooled feature and in a sequence has the sum of both, from one read and in one update."""
    tables = {"ab": {"feature_names": ["a", "b"]}}
    bags = EmbeddingBags(config(tables=tables), ["a", "b"], 4, seed=1)
    before = rows_of(bags, 0)
    lookup = bags.lookup(batch_of({"a": [[1], [2]], "b": [[1], [3]]}))
    (pooled,) = bags.pool_unique(lookup, ["a"])
    assert pooled.feature_names == ("a",)
    assert pooled.pooled.shape == (2, 1, 4)
    rows, _ = bags.sequence(lookup, "b")
    (pooled.pooled.sum() + 3.0 * rows.sum()).backward()
    bags.apply_gradients()
    assert bags.table_group is not None
    assert bags.table_group.step == 1
    change = ((before - rows_of(bags, 0)) / 0.5)[:, 0]
    torch.testing.assert_close(change[1:4], torch.tensor([4.0, 1.0, 3.0]))
    with pytest.raises(KeyError, match="feature c: not in this lookup, which has: a, b"):
        bags.sequence(lookup, "c")


def test_a_long_gradient_of_a_step_is_scaled_to_the_longest_allowed() -> None:
    lists = {"a": [[0], [1]], "b": [[2], [2]]}
    free, clipped = (EmbeddingBags(config(), list(lists), 4, seed=1) for _ in range(2))
    limited = clipped.config.model_copy(update={"clip_grad_norm": 0.5})
    clipped = EmbeddingBags(limited, list(lists), 4, seed=1)
    before = rows_of(free, 0), rows_of(free, 1)
    moved = []
    for bags in (free, clipped):
        bags((jagged(lists),)).sum().backward()
        bags.apply_gradients()
        moved.append(torch.cat([rows_of(bags, table) - before[table] for table in (0, 1)]))
    # Rows 0 and 1 of a have gradient 1, row 2 of b has 2, four numbers each: the norm is sqrt(4 + 4 + 16).
    torch.testing.assert_close(moved[1], moved[0] * 0.5 / 24**0.5)
