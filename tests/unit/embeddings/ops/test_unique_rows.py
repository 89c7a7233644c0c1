"""Deduplicated groups: looked up and pooled once per unique row, the same as the expanded batch."""

from typing import Any

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.embeddings import EmbeddingBags, EmbeddingsConfig
from headrace.errors import DataError
from headrace.tensors import InverseKeyedJaggedTensor, KeyedJaggedTensor

SIZE = 7
NAMES = ("a", "b", "c", "d")
TABLES: dict[str, dict[str, Any]] = {"s": {"feature_names": ["a", "c"]}, "b": {"pooling": "mean"}, "d": {}}
EPS = 2.0**-24  # half a unit in the last place of float32, relative


def bags_of(kind: str = "direct", tables: dict[str, Any] | None = None, **default: Any) -> EmbeddingBags:
    values = {"kind": kind, "num_embeddings": SIZE, "init_scale": 1.0, "optimizer": {"kind": "sgd", "lr": 0.5}}
    config = EmbeddingsConfig.from_dict({"default": values | default, "tables": tables or TABLES}, where="test")
    return EmbeddingBags(config, NAMES, 4, seed=1)


def group(lists: dict[str, list[list[int]]], inverse: list[int], weighted: bool = False) -> InverseKeyedJaggedTensor:
    """Unique rows as lists per feature, and which row of the batch has which."""
    kjt = KeyedJaggedTensor.from_lists(lists)
    if weighted:
        weights = torch.rand(kjt.values.numel(), generator=torch.Generator().manual_seed(0)) + 0.5
        kjt = KeyedJaggedTensor.from_lengths(kjt.keys, kjt.values, kjt.lengths, weights)
    return InverseKeyedJaggedTensor.of_unique(kjt, torch.tensor(inverse, dtype=torch.int32))


@st.composite
def mixed_batches(draw: st.DrawFn) -> tuple[InverseKeyedJaggedTensor | KeyedJaggedTensor, ...]:
    """One or two deduplicated groups and perhaps a plain one; rows equal, different, empty, or in no row at all."""
    stride, weighted = draw(st.integers(1, 8)), draw(st.booleans())
    cut = draw(st.integers(1, 4))
    ids = st.lists(st.integers(0, SIZE - 1), max_size=4)
    groups: list[InverseKeyedJaggedTensor | KeyedJaggedTensor] = []
    for number, names in enumerate((NAMES[:cut], NAMES[cut:])):
        if not names:
            continue
        unique = draw(st.integers(1, stride + 1))
        lists = {name: draw(st.lists(ids, min_size=unique, max_size=unique)) for name in names}
        inverse = draw(st.lists(st.integers(0, unique - 1), min_size=stride, max_size=stride))
        made = group(lists, inverse, weighted)
        groups.append(made.expand() if number == 1 and draw(st.booleans()) else made)
    return tuple(groups)


def expanded(sparse: tuple[Any, ...]) -> tuple[KeyedJaggedTensor, ...]:
    return tuple(part.expand() if isinstance(part, InverseKeyedJaggedTensor) else part for part in sparse)


def weights_of(bags: EmbeddingBags) -> torch.Tensor:
    assert bags.table_group is not None
    return bags.table_group.weights.clone()


@given(sparse=mixed_batches(), pooling=st.sampled_from(["sum", "mean", "max"]))
@settings(max_examples=60, deadline=None)
def test_training_on_unique_rows_equals_training_on_the_expanded_batch(sparse: tuple[Any, ...], pooling: str) -> None:
    if any(part.weights is not None for part in sparse) and pooling == "max":
        pooling = "sum"
    tables = {name: config | {"pooling": pooling} for name, config in TABLES.items()}
    short, full = bags_of(tables=tables), bags_of(tables=tables)
    pooled, plain = short(sparse), full(expanded(sparse))
    assert torch.equal(pooled, plain), "the order of each list's sum is kept, so pooled vectors agree bit for bit"

    grads = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(3))
    for bags, out in ((short, pooled), (full, plain)):
        out.backward(grads)
        bags.apply_gradients()
    # The sum of a key's gradients runs over unique rows first. Any order of a sum of n numbers is within
    # (n - 1) eps of the sum of their magnitudes (Higham, Accuracy and Stability, 4.2); weights and means add two
    # roundings each; the step multiplies by 0.5 and rounds twice.
    num_terms = sum(part.values.numel() for part in expanded(sparse)) + 6
    weights = [part.weights for part in sparse if part.weights is not None]
    magnitude = 1.5 if weights else 1.0
    bound = 2 * num_terms * EPS * (grads.abs().sum(dim=(0, 1)).max().item() * 5 * magnitude + 2)
    assert (weights_of(short) - weights_of(full)).abs().max() <= bound


@given(sparse=mixed_batches())
@settings(max_examples=40, deadline=None)
def test_counts_of_keys_are_those_of_the_expanded_batch(sparse: tuple[Any, ...]) -> None:
    short, full = bags_of("collisionless", admission_count=3), bags_of("collisionless", admission_count=3)
    counts = []
    for bags, batch in ((short, sparse), (full, expanded(sparse))):
        keys = bags.lookup(batch).parts[0].found.keys
        counts.append(sorted(zip(keys.tables.tolist(), keys.ids.tolist(), keys.counts.tolist(), strict=True)))
        assert bags.table_group is not None
    assert counts[0] == counts[1]
    assert short.table_group is not None
    assert full.table_group is not None
    assert short.table_group.num_rows == full.table_group.num_rows


@pytest.mark.parametrize("inverse", [[0, 0, 0, 0], [0, 1, 2, 3], [3, 1, 0, 2], [2]], ids=str)
def test_parameters_agree_bit_for_bit_where_the_order_of_sums_is_kept(inverse: list[int]) -> None:
    """One id a list and gradients that are powers of two: every sum is exact, in any order."""
    sparse = (group({name: [[0], [1], [2], [3]] for name in NAMES}, inverse),)
    short, full = bags_of(), bags_of()
    for bags, batch in ((short, sparse), (full, expanded(sparse))):
        (bags(batch) * 0.25).sum().backward()
        bags.apply_gradients()
    assert torch.equal(weights_of(short), weights_of(full))


def test_rows_that_are_slices_of_one_buffer_are_looked_up_once_per_id_of_the_buffer() -> None:
    # c and d repeat within rows: 1 2 3 | 2 3 4 | (none) | 5, the fourth in no row of the batch
    starts = torch.tensor([0, 1, 0, 4, 5, 6, 5, 9])
    shifted = InverseKeyedJaggedTensor(
        ("c", "d"),
        torch.tensor([1, 2, 3, 4, 5, 1, 2, 3, 4, 5]),
        torch.tensor([3, 3, 0, 1] * 2, dtype=torch.int32),
        None,
        torch.tensor([1, 0, 0, 2], dtype=torch.int32),
        4,
        None,
        starts,
    )
    plain = KeyedJaggedTensor.from_lists({"a": [[0], [1], [2], []], "b": [[6], [6, 5], [], [4]]})
    short, full = bags_of(), bags_of()
    lookup = short.lookup((plain, shifted))
    keys = lookup.parts[0].found.keys
    found = dict(zip(zip(keys.tables.tolist(), keys.ids.tolist(), strict=True), keys.counts.tolist(), strict=True))
    table = {table.name: number for number, table in enumerate(short.tables)}
    assert found[table["d"], 2] == 3
    assert found[table["s"], 2] == 4, "three rows have it in c, one in a"
    assert (table["d"], 5) not in found, "no row of the batch has it"
    out = short.pool(lookup)
    plain_out = full((plain, shifted.expand()))
    assert torch.equal(out, plain_out)
    for bags, pooled in ((short, out), (full, plain_out)):
        pooled.square().sum().backward()
        bags.apply_gradients()
    torch.testing.assert_close(weights_of(short), weights_of(full))


def test_features_that_share_positions_of_one_buffer_are_still_told_apart() -> None:
    shared = InverseKeyedJaggedTensor(
        NAMES,
        torch.tensor([1, 2, 3]),
        torch.tensor([2, 1] * 4, dtype=torch.int32),
        None,
        torch.tensor([0, 1, 0], dtype=torch.int32),
        2,
        None,
        torch.tensor([0, 1] * 4),
    )
    short, full = bags_of(), bags_of()
    assert torch.equal(short((shared,)), full((shared.expand(),)))


def test_pooled_unique_rows_and_their_inverse_give_the_pooled_rows() -> None:
    deduplicated = group({"a": [[1, 2], []], "c": [[3], [4]]}, [1, 0, 0])
    plain = KeyedJaggedTensor.from_lists({"d": [[1], [2], [3]], "b": [[1, 1], [2], []]})
    bags, other = bags_of(), bags_of()
    lookup = bags.lookup((plain, deduplicated))
    first, second = bags.pool_unique(lookup)
    assert first.feature_names == ("b", "d")
    assert first.inverse is None
    assert second.feature_names == ("a", "c")
    assert second.pooled.shape == (2, 2, 4)
    assert second.inverse is not None
    expanded_group = second.pooled.index_select(0, second.inverse)
    out = torch.stack([expanded_group[:, 0], first.pooled[:, 0], expanded_group[:, 1], first.pooled[:, 1]], dim=1)
    plain_out = other((plain, deduplicated))
    assert torch.equal(out, plain_out)
    for module, pooled in ((bags, out), (other, plain_out)):
        pooled.square().sum().backward()
        module.apply_gradients()
    torch.testing.assert_close(weights_of(bags), weights_of(other))


def test_a_sequence_of_a_deduplicated_group_holds_the_lists_of_unique_rows() -> None:
    deduplicated = group({"a": [[1, 2], [3], [6]], "b": [[], [4], [5]]}, [1, 0, 0, 1])
    plain = KeyedJaggedTensor.from_lists({"c": [[1]] * 4, "d": [[1]] * 4})
    bags, other = bags_of(), bags_of()
    lookup = bags.lookup((deduplicated, plain))
    rows, offsets = bags.sequence(lookup, "a")
    assert offsets.tolist() == [0, 2, 3, 3], "the third unique row is in no row of the batch"
    inverse = lookup.inverse_lookup("a")
    assert inverse is not None
    assert inverse.tolist() == [1, 0, 0, 1]
    assert lookup.inverse_lookup("c") is None
    full = other.lookup((deduplicated.expand(), plain))
    full_rows, full_offsets = other.sequence(full, "a")
    assert full_offsets.tolist() == [0, 1, 3, 5, 6]
    assert torch.equal(rows[torch.tensor([2, 0, 1, 0, 1, 2])], full_rows)
    (rows[torch.tensor([2, 0, 1, 0, 1, 2])].square().sum() + bags.pool(lookup).sum()).backward()
    (full_rows.square().sum() + other.pool(full).sum()).backward()
    for module in (bags, other):
        module.apply_gradients()
    torch.testing.assert_close(weights_of(bags), weights_of(other))


def test_training_on_unique_rows_is_bit_for_bit_the_same_for_any_number_of_threads() -> None:
    rng = np.random.default_rng(0)
    lists = {name: [(rng.zipf(1.3, rng.integers(0, 9)) % SIZE).tolist() for _ in range(90)] for name in NAMES}
    sparse = (group(lists, rng.integers(0, 90, 400).tolist()),)
    results = []
    for threads in (1, numba.config.NUMBA_NUM_THREADS):
        numba.set_num_threads(threads)
        bags = bags_of(tables={"one": {"feature_names": list(NAMES)}}, optimizer={"kind": "adagrad"})
        for _ in range(3):
            bags(sparse).square().sum().backward()
            bags.apply_gradients()
        results.append(weights_of(bags))
    assert torch.equal(*results)


def test_an_id_out_of_range_in_a_unique_row_is_told_with_a_row_of_the_batch() -> None:
    bags = bags_of()
    deduplicated = group({"a": [[1], [2]], "b": [[1], [3, SIZE]]}, [0, 0, 1])
    plain = KeyedJaggedTensor.from_lists({"c": [[1]] * 3, "d": [[1]] * 3})
    with pytest.raises(DataError, match=rf"^feature b: id {SIZE} in row 2 of the batch"):
        bags((plain, deduplicated))


def test_an_id_out_of_range_that_no_row_has_is_never_read() -> None:
    bags = bags_of()
    deduplicated = group({name: [[1], [SIZE + 5]] for name in NAMES}, [0, 0])
    assert bags((deduplicated,)).shape == (2, 4, 4)
