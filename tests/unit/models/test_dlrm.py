import torch

from headrace.embeddings import EmbeddingsConfig
from headrace.models import DLRM, DLRMConfig
from headrace.models.interaction import dot_interaction
from headrace.models.layers import linear, seeded
from headrace.tensors import Batch


def test_interaction_is_the_dot_product_of_each_pair_of_different_vectors_once() -> None:
    vectors = torch.randn(5, 4, 3, generator=seeded(0))
    dots = dot_interaction(None, vectors)
    pairs = [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]
    expected = torch.stack([(vectors[:, i] * vectors[:, j]).sum(1) for i, j in pairs], dim=1)
    torch.testing.assert_close(dots, expected)


def test_forward_follows_the_figure(batch: Batch, embeddings: EmbeddingsConfig) -> None:
    config = DLRMConfig(embedding_dim=4, bottom=(8,), top=(16,))
    model = DLRM(
        config, num_dense=2, sparse_keys=["user", "item"], num_labels=1, embeddings=EmbeddingsConfig(), seed=3
    ).eval()
    emb = model.embeddings(batch)
    weights = dict(model.named_parameters())

    def layer(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    x = layer(layer(batch.dense, "bottom.0").relu(), "bottom.2").relu()
    user, item = emb[:, 0], emb[:, 1]
    dots = torch.stack([(user * x).sum(1), (item * x).sum(1), (item * user).sum(1)], dim=1)
    expected = layer(layer(torch.cat([x, dots], dim=1), "top.0").relu(), "head")
    torch.testing.assert_close(model(batch), expected)


def test_linear_layers_begin_with_the_spread_of_the_dlrm_code() -> None:
    layer = linear(300, 500, seeded(0))
    assert abs(layer.weight.std().item() - (2 / 800) ** 0.5) < 0.001
    assert abs(layer.bias.std().item() - 500**-0.5) < 0.006
    assert abs(layer.weight.mean().item()) < 0.001
