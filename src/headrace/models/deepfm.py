"""DeepFM: a factorisation machine and a deep network on the same embeddings, whose logits are added.

Guo et al., "DeepFM: A Factorization-Machine based Neural Network for CTR Prediction", 2017.

    first order     w_i x_i over all features          one number per id, in a separate table
    second order    <v_i, v_j> x_i x_j over all pairs  = 1/2 ((sum v)^2 - sum v^2), summed over D
    deep            MLP([dense_BN, emb_BFD flattened])

Legend: B rows, N dense features, F sparse features, G = N + F fields, D embedding dimension, L labels. With several
labels the second-order term is shared; the first-order term and the deep network have one output per label.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from headrace.embeddings import EmbeddingBags, EmbeddingsConfig
from headrace.models.base import ModelConfig
from headrace.models.feature_axes import FeatureAxes, FeatureAxis, embedding_entries, inputs
from headrace.models.fields import join_fields_with_fm
from headrace.models.layers import head, mlp, seeded
from headrace.tensors import Batch

__all__ = ["DeepFM", "DeepFMConfig"]


class DeepFMConfig(ModelConfig):
    """DeepFM. The default deep network, three layers of 400, was the best on Criteo in the paper."""

    kind: Literal["deepfm"] = "deepfm"
    deep: tuple[int, ...] = Field(default=(400, 400, 400), min_length=1)
    """Hidden widths of the deep network."""

    def build(self, **sizes: Any) -> DeepFM:
        """See `ModelConfig.build`."""
        return DeepFM(self, **sizes)

    def feature_axes(self, *, dense_names: Sequence[str], sparse_keys: Sequence[str]) -> FeatureAxes:
        """See `ModelConfig.feature_axes`."""
        return {
            "first_order_dense.weight": inputs(dense_names),
            "dense_vectors_ND": (FeatureAxis(0, dense_names),),
            "deep.0.weight": inputs([*dense_names, *embedding_entries(sparse_keys, self.embedding_dim)]),
        }


class DeepFM(nn.Module):
    """Factorisation machine plus deep network (DeepFM).

    Args:
        config: Sizes of the layers.
        num_dense: Number of dense features N.
        sparse_keys: Names of the sparse features F.
        num_labels: Number of labels L.
        embeddings: Configuration of the embedding tables, for vectors and first-order weights.
        seed: Seed of all initial values.
    """

    def __init__(
        self,
        config: DeepFMConfig,
        *,
        num_dense: int,
        sparse_keys: Sequence[str],
        num_labels: int,
        embeddings: EmbeddingsConfig,
        seed: int,
    ) -> None:
        super().__init__()
        generator, dim = seeded(seed), config.embedding_dim
        self.embeddings = EmbeddingBags(embeddings, sparse_keys, dim, seed=seed)
        self.first_order = EmbeddingBags(embeddings.first_order(), sparse_keys, num_labels, seed=seed)
        self.first_order_dense = head(num_dense, num_labels, generator)
        # A dense feature is also a field: its value times a learned vector.
        self.dense_vectors_ND = nn.Parameter(torch.empty(num_dense, dim).normal_(0, 0.01, generator=generator))
        self.deep = mlp(num_dense + len(sparse_keys) * dim, config.deep, generator)
        self.head = head(config.deep[-1], num_labels, generator)

    def forward(self, batch: Batch) -> Tensor:
        """Compute logits, float32 [B, L]."""
        emb_BFD = self.embeddings(batch)
        first_BL = self.first_order(batch).sum(1) + self.first_order_dense(batch.dense)
        x_BX, second_B = join_fields_with_fm(batch.dense, emb_BFD, self.dense_vectors_ND, self.deep.dtype)
        deep_BL = self.head(self.deep(x_BX))
        return first_BL + second_B[:, None] + deep_BL  # type: ignore[no-any-return]
