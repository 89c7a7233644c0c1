"""Wide & Deep: a linear model that memorises and a deep network that generalises, whose logits are added.

Cheng et al., "Wide & Deep Learning for Recommender Systems", 2016.

    wide    one weight per id (in a separate table) and per dense feature; crosses must be features of the logs
    deep    MLP([dense_BN, emb_BFD flattened])

Legend: B rows, N dense features, F sparse features, D embedding dimension, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from headrace.embeddings import EmbeddingBags, EmbeddingsConfig
from headrace.models.base import ModelConfig
from headrace.models.feature_axes import FeatureAxes, embedding_entries, inputs
from headrace.models.fields import join_fields
from headrace.models.layers import head, mlp, seeded
from headrace.tensors import Batch

__all__ = ["WideDeep", "WideDeepConfig"]


class WideDeepConfig(ModelConfig):
    """Wide & Deep. The default widths are those of the paper's app-store model."""

    kind: Literal["wide_deep"] = "wide_deep"
    deep: tuple[int, ...] = Field(default=(1024, 512, 256), min_length=1)
    """Hidden widths of the deep network."""

    def build(self, **sizes: Any) -> WideDeep:
        """See `ModelConfig.build`."""
        return WideDeep(self, **sizes)

    def feature_axes(self, *, dense_names: Sequence[str], sparse_keys: Sequence[str]) -> FeatureAxes:
        """See `ModelConfig.feature_axes`."""
        return {
            "wide_dense.weight": inputs(dense_names),
            "deep.0.weight": inputs([*dense_names, *embedding_entries(sparse_keys, self.embedding_dim)]),
        }


class WideDeep(nn.Module):
    """Linear model plus deep network (Wide & Deep).

    Args:
        config: Sizes of the layers.
        num_dense: Number of dense features N.
        sparse_keys: Names of the sparse features F.
        num_labels: Number of labels L.
        embeddings: Configuration of the embedding tables, for vectors and wide weights.
        seed: Seed of all initial values.
    """

    def __init__(
        self,
        config: WideDeepConfig,
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
        self.wide = EmbeddingBags(embeddings.first_order(), sparse_keys, num_labels, seed=seed)
        self.wide_dense = head(num_dense, num_labels, generator)
        self.deep = mlp(num_dense + len(sparse_keys) * dim, config.deep, generator)
        self.head = head(config.deep[-1], num_labels, generator)

    def forward(self, batch: Batch) -> Tensor:
        """Compute logits, float32 [B, L]."""
        emb_BFD = self.embeddings(batch)
        wide_BL = self.wide(batch).sum(1) + self.wide_dense(batch.dense)
        deep_BL = self.head(self.deep(join_fields(batch.dense, emb_BFD, self.deep.dtype)))
        return wide_BL + deep_BL  # type: ignore[no-any-return]
