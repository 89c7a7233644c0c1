"""Target attention and DIN against the paper's formulas, written out pair by pair."""

import pytest
import torch

from headrace.embeddings import EmbeddingsConfig
from headrace.errors import ConfigError
from headrace.models import DIN, DINConfig
from headrace.models.layers import seeded
from headrace.models.target_attention import TargetAttention
from headrace.tensors import Batch


def test_scores_are_those_of_an_mlp_over_target_item_difference_and_product() -> None:
    attention = TargetAttention(4, (6, 5), seeded(0))
    rows, offsets, targets = torch.randn(5, 4), torch.tensor([0, 2, 2, 5]), torch.randn(3, 4)
    # One weight of four blocks that splits into the parts of the module: W2 = 0 puts the difference on the item.
    w_target, w_item, w_product = attention.target.weight, attention.item.weight, attention.product.weight
    blocks = torch.cat([w_target + w_item, torch.zeros_like(w_item), -w_item, w_product], dim=1)
    expected = torch.zeros(3, 4)
    for row in range(3):
        for item in rows[offsets[row] : offsets[row + 1]]:
            given = torch.cat([targets[row], item, targets[row] - item, targets[row] * item])
            hidden = torch.relu(blocks @ given + attention.target.bias)
            expected[row] += attention.score(attention.deep(hidden)) * item
    torch.testing.assert_close(attention(rows, offsets, None, targets), expected, rtol=1e-4, atol=1e-5)


def test_rows_that_share_a_list_attend_to_it_each_with_its_own_target() -> None:
    attention = TargetAttention(4, (6,), seeded(0))
    rows, targets = torch.randn(5, 4), torch.randn(4, 4)
    inverse = torch.tensor([1, 0, 1, 0], dtype=torch.int32)
    shared = attention(rows, torch.tensor([0, 2, 5]), inverse, targets)
    lists = [rows[2:5], rows[:2], rows[2:5], rows[:2]]
    expanded = attention(torch.cat(lists), torch.tensor([0, 3, 5, 8, 10]), None, targets)
    torch.testing.assert_close(shared, expanded)


def test_din_puts_interests_beside_pooled_and_dense_features(batch: Batch, embeddings: EmbeddingsConfig) -> None:
    config = DINConfig(kind="din", embedding_dim=4, histories={"history": "item"}, attention=(6,), deep=(8,))
    keys = ["user", "history", "item"]
    model = DIN(config, num_dense=2, sparse_keys=keys, num_labels=1, embeddings=embeddings, seed=0).eval()
    pooled = model.embeddings(batch)
    lookup = model.embeddings.lookup(batch)
    interest = model.attention[0](*model.embeddings.sequence(lookup, "history"), None, pooled[:, 2])
    x = torch.cat([batch.dense, pooled[:, 0], pooled[:, 2], interest], dim=1)
    torch.testing.assert_close(model(batch), model.head(model.deep(x)))


@pytest.mark.parametrize(
    ("histories", "message"),
    [({"histry": "item"}, "given histry"), ({"history": "itm"}, "given itm"), ({"history": "history"}, "only one")],
)
def test_a_history_that_does_not_exist_is_named(
    histories: dict[str, str], message: str, embeddings: EmbeddingsConfig
) -> None:
    config = DINConfig(kind="din", histories=histories)
    with pytest.raises(ConfigError, match=message):
        DIN(config, num_dense=0, sparse_keys=["item", "history"], num_labels=1, embeddings=embeddings, seed=0)
