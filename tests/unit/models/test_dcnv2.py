from typing import Any

import pytest
import torch

from headrace.embeddings import AdagradConfig, EmbeddingsConfig
from headrace.models import DCNv2, DCNv2Config
from headrace.models.dcnv2 import CrossNetwork
from headrace.models.layers import seeded
from headrace.tensors import Batch


def built(embeddings: EmbeddingsConfig, **settings: Any) -> DCNv2:
    config = DCNv2Config(embedding_dim=4, deep=(8,), **settings)
    return DCNv2(
        config, num_dense=2, sparse_keys=["user", "item", "history"], num_labels=2, embeddings=embeddings, seed=3
    )


@pytest.mark.parametrize("structure", ["parallel", "stacked"])
def test_the_linear_part_adds_a_weight_per_id_and_label(
    batch: Batch, embeddings: EmbeddingsConfig, structure: str
) -> None:
    model, without = (built(embeddings, structure=structure, linear=linear).train() for linear in (True, False))
    assert model.linear is not None
    assert without.linear is None
    torch.testing.assert_close(model(batch), without(batch))  # weights start at zero
    (model.linear(batch) * torch.tensor([1.0, -2.0])).sum().backward()
    model.linear.apply_gradients()
    weights_BFL = model.eval().linear(batch)  # type: ignore[misc]
    assert weights_BFL.any()
    torch.testing.assert_close(model(batch), without.eval()(batch) + weights_BFL.sum(1))


def test_the_linear_part_has_an_optimizer_of_its_own(batch: Batch, embeddings: EmbeddingsConfig) -> None:
    own = AdagradConfig(lr=0.5, eps=1.0, reduction="sum")
    model = built(embeddings.model_copy(update={"linear_optimizer": own}), linear=True)
    assert model.linear is not None
    assert {table.optimizer for table in model.linear.tables} == {own}
    assert {table.optimizer.kind for table in model.embeddings.tables} == {"rowwise_adagrad"}
    (model.linear(batch)[:, 0, 0].mean()).backward()
    model.linear.apply_gradients()
    # users 0 to 3 have three of the twelve rows each; the gradient of the sum over rows is 3 for each
    torch.testing.assert_close(model.eval().linear(batch)[:, 0, 0], torch.full((12,), -0.5 * 3 / (3 + 1)))


def test_cross_layers_follow_the_formula() -> None:
    cross = CrossNetwork(6, 2, None, seeded(0))
    x0 = torch.randn(3, 6, generator=seeded(1))
    x = x0
    for layer in cross.layers:
        x = x0 * (x @ layer.weight.T + layer.bias) + x
    torch.testing.assert_close(cross(x0), x)


def test_low_rank_cross_layers_are_full_ones_with_the_product_of_two_matrices() -> None:
    low, full = CrossNetwork(6, 1, 2, seeded(0)), CrossNetwork(6, 1, None, seeded(0))
    down, up = low.layers[0]
    assert down.weight.shape == (2, 6)
    with torch.no_grad():
        full.layers[0].weight.copy_(up.weight @ down.weight)
        full.layers[0].bias.copy_(up.bias)
    x0 = torch.randn(3, 6, generator=seeded(1))
    torch.testing.assert_close(low(x0), full(x0))
