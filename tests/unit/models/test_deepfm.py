import torch

from headrace.embeddings import EmbeddingsConfig
from headrace.models import DeepFM, DeepFMConfig
from headrace.tensors import Batch

KEYS = ["user", "item", "history"]


def test_forward_is_first_order_plus_pairs_plus_deep(batch: Batch, embeddings: EmbeddingsConfig) -> None:
    model = DeepFM(
        DeepFMConfig(embedding_dim=4, deep=(8,)),
        num_dense=2,
        sparse_keys=KEYS,
        num_labels=1,
        embeddings=embeddings,
        seed=3,
    ).eval()
    weights = model.first_order.train()(batch)  # zeros; after a step they differ
    (weights * torch.randn(weights.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    model.first_order.apply_gradients()
    assert model.eval().first_order(batch).any()
    emb = model.embeddings(batch)
    fields = [batch.dense[:, [n]] * model.dense_vectors_ND[n] for n in range(2)] + [emb[:, f] for f in range(3)]
    pairs = sum((fields[i] * fields[j]).sum(1) for i in range(5) for j in range(i))
    first = model.first_order(batch).sum((1, 2)) + model.first_order_dense(batch.dense)[:, 0]
    deep = model.head(model.deep(torch.cat([batch.dense, emb.flatten(1)], dim=1)))[:, 0]
    torch.testing.assert_close(model(batch)[:, 0], first + pairs + deep)


def test_first_order_weights_begin_at_zero(embeddings: EmbeddingsConfig) -> None:
    model = DeepFM(DeepFMConfig(), num_dense=2, sparse_keys=KEYS, num_labels=1, embeddings=embeddings, seed=3)
    assert model.first_order.table_group is not None
    assert not model.first_order.table_group.weights.any()
