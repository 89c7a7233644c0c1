import torch

from headrace.embeddings import EmbeddingsConfig
from headrace.models import WideDeep, WideDeepConfig
from headrace.tensors import Batch


def test_forward_is_wide_plus_deep_for_each_label(batch: Batch, embeddings: EmbeddingsConfig) -> None:
    model = WideDeep(
        WideDeepConfig(embedding_dim=4, deep=(8,)),
        num_dense=2,
        sparse_keys=["user", "item", "history"],
        num_labels=2,
        embeddings=embeddings,
        seed=3,
    ).eval()
    weights = model.wide.train()(batch)  # zeros; after a step they differ
    (weights * torch.randn(weights.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    model.wide.apply_gradients()
    assert model.eval().wide(batch).any()
    wide = model.wide(batch).sum(1) + model.wide_dense(batch.dense)
    emb = model.embeddings(batch)
    deep = model.head(model.deep(torch.cat([batch.dense, emb.flatten(1)], dim=1)))
    torch.testing.assert_close(model(batch), wide + deep)
