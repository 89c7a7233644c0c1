"""DCN-v2: explicit feature crosses of increasing order, parallel to (or below) a deep network, and maybe a linear part.

Wang et al., "DCN V2: Improved Deep & Cross Network", 2021. The linear part is that of Cheng et al., "Wide & Deep
Learning for Recommender Systems", 2016, section 3.1, without crosses.

    x0_BX = [dense_BN, emb_BFD flattened]
    x_{l+1} = x0 * (W_l x_l + b_l) + x_l          W_l = U_l V_l with a rank, else full

    parallel:   logits = head([cross(x0), deep(x0)])
    stacked:    logits = head(deep(cross(x0)))
    linear:     logits += sum over the ids of a row of one weight each

Legend: B rows, N dense features, F sparse features, D embedding dimension, X = N + F D, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from headrace.embeddings import EmbeddingBags, EmbeddingsConfig
from headrace.models.base import ModelConfig
from headrace.models.cross import CrossNetwork
from headrace.models.feature_axes import FeatureAxes, FeatureAxis, embedding_entries, inputs, outputs
from headrace.models.fields import join_fields
from headrace.models.layers import head, mlp, seeded
from headrace.tensors import Batch

__all__ = ["CrossNetwork", "DCNv2", "DCNv2Config"]


class DCNv2Config(ModelConfig):
    """DCN-v2. In the paper, two to four cross layers were best, and a rank of X / 4 preserved the quality."""

    kind: Literal["dcnv2"] = "dcnv2"
    num_cross_layers: int = Field(default=3, ge=1)
    """Number of cross layers; each raises the order of feature crosses by one."""
    cross_rank: int | None = Field(default=None, ge=1)
    """Rank of the cross matrices; None for full rank."""
    deep: tuple[int, ...] = Field(default=(512, 256), min_length=1)
    """Widths of the deep network."""
    structure: Literal["parallel", "stacked"] = "parallel"
    """Whether the deep network is parallel to the cross layers, or stacked on top of them."""
    linear: bool = False
    """Whether to add one weight per id and label to the logits; `embeddings.linear_optimizer` trains them."""

    def build(self, **sizes: Any) -> DCNv2:
        """See `ModelConfig.build`."""
        return DCNv2(self, **sizes)

    def feature_axes(self, *, dense_names: Sequence[str], sparse_keys: Sequence[str]) -> FeatureAxes:
        """See `ModelConfig.feature_axes`. The cross layers have an output for each of their inputs."""
        fields = [*dense_names, *embedding_entries(sparse_keys, self.embedding_dim)]
        axes: dict[str, tuple[FeatureAxis, ...]] = {"deep.0.weight": inputs(fields)}
        for layer in (f"cross.layers.{number}" for number in range(self.num_cross_layers)):
            if self.cross_rank is None:
                axes |= {f"{layer}.weight": outputs(fields) + inputs(fields), f"{layer}.bias": outputs(fields)}
            else:
                axes |= {f"{layer}.0.weight": inputs(fields)}
                axes |= {f"{layer}.1.weight": outputs(fields), f"{layer}.1.bias": outputs(fields)}
        if self.structure == "parallel":
            axes["head.weight"] = inputs([*fields, *range(self.deep[-1])])
        return axes


class DCNv2(nn.Module):
    """Deep and cross network, version 2 (DCN-v2).

    Args:
        config: Sizes of the layers.
        num_dense: Number of dense features N.
        sparse_keys: Names of the sparse features F.
        num_labels: Number of labels L.
        embeddings: Configuration of the embedding tables.
        seed: Seed of all initial values.
    """

    def __init__(
        self,
        config: DCNv2Config,
        *,
        num_dense: int,
        sparse_keys: Sequence[str],
        num_labels: int,
        embeddings: EmbeddingsConfig,
        seed: int,
    ) -> None:
        super().__init__()
        generator = seeded(seed)
        num_features = num_dense + len(sparse_keys) * config.embedding_dim
        self.embeddings = EmbeddingBags(embeddings, sparse_keys, config.embedding_dim, seed=seed)
        self.linear = None
        if config.linear:
            self.linear = EmbeddingBags(embeddings.first_order(), sparse_keys, num_labels, seed=seed)
        self.cross = CrossNetwork(num_features, config.num_cross_layers, config.cross_rank, generator)
        self.deep = mlp(num_features, config.deep, generator)
        self.is_parallel = config.structure == "parallel"
        self.head = head(config.deep[-1] + (num_features if self.is_parallel else 0), num_labels, generator)

    def forward(self, batch: Batch) -> Tensor:
        """Compute logits, float32 [B, L]."""
        emb_BFD = self.embeddings(batch)
        x0_BX = join_fields(batch.dense, emb_BFD, self.deep.dtype)
        cross_BX = self.cross(x0_BX)
        parts = (cross_BX, self.deep(x0_BX)) if self.is_parallel else (self.deep(cross_BX),)
        logits_BL: Tensor = self.head(*parts)
        return logits_BL if self.linear is None else logits_BL + self.linear(batch).sum(1)
