"""DLRM: dense features through an MLP, dot products of all pairs of vectors, an MLP on top.

Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation Systems", 2019.

    dense_BN ── bottom MLP ── x_BD ─┬────────────────────────┐
                                    ├─ dot products of pairs ┴─ top MLP ── logits_BL
    ids ─────── embeddings ── emb_BFD

Legend: B rows, N dense features, F sparse features, D embedding dimension, G = F + 1 vectors, P = G (G - 1) / 2 pairs,
L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from headrace.embeddings import EmbeddingBags, EmbeddingsConfig
from headrace.errors import ConfigError
from headrace.models.base import ModelConfig
from headrace.models.encoded_features import EncodedFeatures
from headrace.models.feature_axes import FeatureAxes, inputs
from headrace.models.histories import HistoryEncoderConfig
from headrace.models.interaction import dot_interaction
from headrace.models.layers import head, mlp, seeded
from headrace.tensors import Batch

__all__ = ["DLRM", "DLRMConfig"]


class DLRMConfig(ModelConfig):
    """DLRM. Default sizes follow the Criteo script of the DLRM code, with wider hidden layers."""

    kind: Literal["dlrm"] = "dlrm"
    bottom: tuple[int, ...] = (512, 256)
    """Hidden widths of the bottom MLP; its output width is `embedding_dim`."""
    top: tuple[int, ...] = Field(default=(512, 256), min_length=1)
    """Hidden widths of the top MLP; its output width is the number of labels."""
    encoder: HistoryEncoderConfig | None = None
    """Encodes id lists with a transformer instead of pooling, once per unique list; None for no encoder."""

    def build(self, **sizes: Any) -> DLRM:
        """See `ModelConfig.build`."""
        return DLRM(self, **sizes)

    def feature_axes(self, *, dense_names: Sequence[str], sparse_keys: Sequence[str]) -> FeatureAxes:
        """See `ModelConfig.feature_axes`. A column of the top MLP belongs to a pair; None is the dense vector."""
        vectors = [None, *sparse_keys] if dense_names else [*sparse_keys]
        pairs = [frozenset((vectors[i], vectors[j])) for i in range(len(vectors)) for j in range(i)]
        if not dense_names:
            return {"top.0.weight": inputs(pairs)}
        return {"bottom.0.weight": inputs(dense_names), "top.0.weight": inputs([*range(self.embedding_dim), *pairs])}


class DLRM(nn.Module):
    """Deep learning recommendation model (DLRM). Without dense features there is no bottom MLP.

    Args:
        config: Sizes of the layers.
        num_dense: Number of dense features N.
        sparse_keys: Names of the sparse features F.
        num_labels: Number of labels L.
        embeddings: Configuration of the embedding tables.
        seed: Seed of all initial values.

    Raises:
        ConfigError: There is only one feature, a sparse one: without a pair, it would not reach the top MLP.
    """

    def __init__(
        self,
        config: DLRMConfig,
        *,
        num_dense: int,
        sparse_keys: Sequence[str],
        num_labels: int,
        embeddings: EmbeddingsConfig,
        seed: int,
    ) -> None:
        super().__init__()
        if not num_dense and len(sparse_keys) == 1:
            raise ConfigError(
                f"model.kind: given dlrm, which needs pairs of features, but {sparse_keys[0]} is the only one, so "
                "predictions would be constant; add a feature, or use another model: dcnv2, deepfm, wide_deep"
            )
        generator, dim = seeded(seed), config.embedding_dim
        self.embeddings = EmbeddingBags(embeddings, sparse_keys, dim, seed=seed)
        self.bottom = mlp(num_dense, [*config.bottom, dim], generator) if num_dense else None
        num_vectors = len(sparse_keys) + (1 if num_dense else 0)
        num_pairs = num_vectors * (num_vectors - 1) // 2
        self.top = mlp(num_pairs + (dim if num_dense else 0), config.top, generator)
        self.head = head(config.top[-1], num_labels, generator)
        self.encoded = None if config.encoder is None else EncodedFeatures(config.encoder, self.embeddings, generator)

    def forward(self, batch: Batch) -> Tensor:
        """Compute logits, float32 [B, L]."""
        bags = self.embeddings
        lookup = bags.lookup(batch)
        x_BD = None if self.bottom is None else self.bottom(batch.dense)  # rows may come meanwhile
        emb_BFD = bags.pool(lookup) if self.encoded is None else self.encoded(bags, lookup)
        return self.head(self.top(dot_interaction(x_BD, emb_BFD, self.top.dtype)))  # type: ignore[no-any-return]
