"""`EncodedFeatures`: embeddings of a batch in which some features are encoded as sequences instead of pooled.

Legend: B rows, F features, D embedding dimension.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from headrace.embeddings import EmbeddingBags, Lookup
from headrace.errors import ConfigError
from headrace.messages import shorten_list
from headrace.models.histories import HistoryEncoder, HistoryEncoderConfig
from headrace.models.tower_work import TowerWork
from headrace.models.unique_rows import expand, pool_expanded

__all__ = ["EncodedFeatures"]


class EncodedFeatures(nn.Module):
    """Embeddings like those of `EmbeddingBags`, with a transformer encoder instead of pooling for some features.

    The encoder runs once per unique history of the batch, and its result is expanded last.

    Args:
        config: Encoded features, and sizes of the encoder.
        bags: The embeddings, which are not registered in this module.
        generator: Random generator of initial values.

    Raises:
        ConfigError: A feature is not in `bags`, or the dimension is not divisible by the number of heads.
    """

    def __init__(self, config: HistoryEncoderConfig, bags: EmbeddingBags, generator: torch.Generator) -> None:
        super().__init__()
        unknown = [name for name in config.features if name not in bags.feature_names]
        if unknown:
            raise ConfigError(
                f"encoder.features: given {unknown[0]}, expected some of: {shorten_list(bags.feature_names)}"
            )
        if bags.embedding_dim % config.num_heads:
            raise ConfigError(
                f"encoder.num_heads: given {config.num_heads}, expected a divisor of embedding_dim {bags.embedding_dim}"
            )
        self.names = config.features
        self.work = TowerWork()
        self.encoder = HistoryEncoder(config, bags.embedding_dim, generator)
        self._pooled = tuple(name for name in bags.feature_names if name not in config.features)
        names = [*self._pooled, *self.names]
        self._order = [names.index(name) for name in bags.feature_names]

    def forward(self, bags: EmbeddingBags, lookup: Lookup) -> Tensor:
        """Compute float32 [B, F, D], with features in the order of `bags`."""
        pooled = [pool_expanded(bags, lookup, self._pooled)] if self._pooled else []
        parts = [bags.sequence(lookup, name) for name in self.names]
        vectors = self.encoder(parts)
        for name, (_, offsets) in zip(self.names, parts, strict=True):
            self.work.add_lists(self.encoder.flop(np.diff(offsets.cpu().numpy())), lookup.inverse_lookup(name))
        encoded = [
            expand(vector, lookup.inverse_lookup(name))[:, None]
            for name, vector in zip(self.names, vectors, strict=True)
        ]
        return torch.cat([*pooled, *encoded], dim=1)[:, self._order]
