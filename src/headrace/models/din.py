"""DIN: attention of the candidate over each history, then an MLP.

Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", 2018.

    candidate ── emb_BD ─┬───────────────┐
    history ─── ids ─── attention ── interest_BD ─┤
    others ──── embeddings, pooled ───────────────┼─ MLP ── logits_BL
    dense ────────────────────────────────────────┘

Legend: B rows, N dense features, F sparse features, D embedding dimension, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from headrace.embeddings import EmbeddingBags, EmbeddingsConfig
from headrace.errors import ConfigError
from headrace.messages import shorten_list
from headrace.models.base import ModelConfig
from headrace.models.feature_axes import FeatureAxes, embedding_entries, inputs
from headrace.models.layers import head, mlp, seeded
from headrace.models.target_attention import TargetAttention
from headrace.models.unique_rows import pool_expanded
from headrace.tensors import Batch

__all__ = ["DIN", "DINConfig"]


class DINConfig(ModelConfig):
    """DIN. The default widths are those of the paper's code; ReLU replaces Dice."""

    kind: Literal["din"]
    histories: dict[str, str] = Field(min_length=1)
    """Id list -> candidate feature that it is compared with, such as {history: item}; both use the same table."""
    attention: tuple[int, ...] = Field(default=(80, 40), min_length=1)
    """Hidden widths of the MLP that scores a pair."""
    deep: tuple[int, ...] = Field(default=(200, 80), min_length=1)
    """Hidden widths of the MLP on top."""

    def build(self, **sizes: Any) -> DIN:
        """See `ModelConfig.build`."""
        return DIN(self, **sizes)

    def feature_axes(self, *, dense_names: Sequence[str], sparse_keys: Sequence[str]) -> FeatureAxes:
        """See `ModelConfig.feature_axes`. Interests follow the pooled features, in the order of `histories`."""
        pooled = [key for key in sparse_keys if key not in self.histories]
        vectors = embedding_entries([*pooled, *self.histories], self.embedding_dim)
        return {"deep.0.weight": inputs([*dense_names, *vectors])}


class DIN(nn.Module):
    """Deep interest network (DIN). Attention terms that depend only on the history are computed once per unique
    history.

    Args:
        config: Sizes of the layers, and pairs of history and candidate.
        num_dense: Number of dense features N.
        sparse_keys: Names of the sparse features F.
        num_labels: Number of labels L.
        embeddings: Configuration of the embedding tables.
        seed: Seed of all initial values.

    Raises:
        ConfigError: `histories` names a feature that does not exist.
    """

    def __init__(
        self,
        config: DINConfig,
        *,
        num_dense: int,
        sparse_keys: Sequence[str],
        num_labels: int,
        embeddings: EmbeddingsConfig,
        seed: int,
    ) -> None:
        super().__init__()
        unknown = [name for pair in config.histories.items() for name in pair if name not in sparse_keys]
        if unknown:
            raise ConfigError(f"model.histories: given {unknown[0]}, expected features of: {shorten_list(sparse_keys)}")
        attended = [target for target in config.histories.values() if target in config.histories]
        if attended:
            raise ConfigError(f"model.histories: {attended[0]} is both a history and a candidate, expected only one")
        generator, dim = seeded(seed), config.embedding_dim
        self.embeddings = EmbeddingBags(embeddings, sparse_keys, dim, seed=seed)
        self.histories = dict(config.histories)
        self.pooled = tuple(name for name in sparse_keys if name not in config.histories)
        self.attention = nn.ModuleList(TargetAttention(dim, config.attention, generator) for _ in config.histories)
        self.deep = mlp(num_dense + len(sparse_keys) * dim, config.deep, generator)
        self.head = head(config.deep[-1], num_labels, generator)

    def forward(self, batch: Batch) -> Tensor:
        """Compute logits, float32 [B, L]."""
        bags = self.embeddings
        lookup = bags.lookup(batch)
        pooled_BFD = pool_expanded(bags, lookup, self.pooled)
        interests = []
        for (history, target), attention in zip(self.histories.items(), self.attention, strict=True):
            target_BD = pooled_BFD[:, self.pooled.index(target)]
            rows_ND, offsets = bags.sequence(lookup, history)
            interests.append(attention(rows_ND, offsets, lookup.inverse_lookup(history), target_BD))
        x_BX = torch.cat([batch.dense, pooled_BFD.flatten(1), *interests], dim=1)
        return self.head(self.deep(x_BX))  # type: ignore[no-any-return]
