"""What runs once per unique row gives what it gives when it runs for every row."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from headrace.embeddings import EmbeddingsConfig, apply_gradients, embedding_bags
from headrace.models import DINConfig, DLRMConfig, HistoryEncoderConfig
from headrace.models.unique_rows import expand
from headrace.tensors import Batch, InverseKeyedJaggedTensor, KeyedJaggedTensor

EMBEDDINGS = EmbeddingsConfig.from_dict(
    {
        "default": {"kind": "hashed", "num_embeddings": 30, "init_scale": 0.5},
        "tables": {"item": {"feature_names": ["history", "liked"]}},
    },
    where="test",
)
CONFIGS = {
    "din": DINConfig(kind="din", embedding_dim=4, histories={"history": "item", "liked": "item"}, attention=(8, 4)),
    "encoder": DLRMConfig(
        embedding_dim=4,
        bottom=(8,),
        top=(8,),
        encoder=HistoryEncoderConfig(features=("liked", "history"), num_layers=2, feedforward=8, max_length=5),
    ),
    "dlrm": DLRMConfig(embedding_dim=4, bottom=(8,), top=(8,)),
}


def make_batch(inverse: list[int], histories: list[list[int]], liked: list[list[int]], *, is_unique: bool) -> Batch:
    rows = range(len(inverse))
    shared = KeyedJaggedTensor.from_lists({"history": histories, "liked": liked})
    group = InverseKeyedJaggedTensor.of_unique(shared, torch.tensor(inverse, dtype=torch.int32))
    own = KeyedJaggedTensor.from_lists({"item": [[row % 7] for row in rows], "user": [[row % 3] for row in rows]})
    generator = torch.Generator().manual_seed(1)
    return Batch(
        dense=torch.randn(len(inverse), 2, generator=generator),
        sparse=(own, group if is_unique else group.expand()),
        labels=torch.randint(0, 2, (len(inverse), 1), generator=generator).float(),
        row_ids=torch.arange(len(inverse)),
    )


def train(config: Any, batch: Batch) -> tuple[list[float], nn.Module]:
    keys = ("user", "item", "history", "liked")
    model = config.build(num_dense=2, sparse_keys=keys, num_labels=1, embeddings=EMBEDDINGS, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(3):
        loss = binary_cross_entropy_with_logits(model(batch), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        apply_gradients(model)
        losses.append(loss.item())
    return losses, model


@st.composite
def sessions(draw: st.DrawFn) -> tuple[list[int], list[list[int]], list[list[int]]]:
    num_unique = draw(st.integers(1, 5))
    ids = st.lists(st.lists(st.integers(0, 40), max_size=8), min_size=num_unique, max_size=num_unique)
    extra = draw(st.lists(st.integers(0, num_unique - 1), max_size=6))
    return [*range(num_unique), *extra], draw(ids), draw(ids)


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=15, deadline=None)
@given(case=sessions())
def test_training_on_unique_rows_is_training_on_all_rows(
    name: str, case: tuple[list[int], list[list[int]], list[list[int]]]
) -> None:
    expected, plain = train(CONFIGS[name], make_batch(*case, is_unique=False))
    losses, model = train(CONFIGS[name], make_batch(*case, is_unique=True))
    # The same sums in another order: of rows into unique rows first.
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    (bags,), (plain_bags,) = embedding_bags(model).values(), embedding_bags(plain).values()
    assert bags.table_group is not None
    assert plain_bags.table_group is not None
    torch.testing.assert_close(bags.table_group.weights, plain_bags.table_group.weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 2, 4)])
def test_expanding_is_an_index_select_forwards_and_backwards(shape: tuple[int, ...]) -> None:
    unique = torch.randn(shape, requires_grad=True)
    inverse = torch.tensor([0, 2, 2, 0, 0], dtype=torch.int32)
    weights = torch.randn(5, *shape[1:])
    (expand(unique, inverse) * weights).sum().backward()
    ours, unique.grad = unique.grad, None
    (unique[inverse.long()] * weights).sum().backward()
    assert ours is not None
    torch.testing.assert_close(ours, unique.grad)


def test_a_plain_group_is_not_touched() -> None:
    rows = torch.randn(3, 2)
    assert expand(rows, None) is rows
