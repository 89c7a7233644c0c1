"""`ModelConfig`: what every model's config has, and what a model of your own needs to be named in a job file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field
from torch import nn

from headrace.embeddings import EmbeddingsConfig
from headrace.registry import MODELS, NamedConfig, Registry

__all__ = ["ModelConfig"]


class ModelConfig(NamedConfig):
    """Base of the configs of models.

    A job file names a model of your own by the place of its config::

        model: {kind: my_package.two_towers:TwoTowersConfig, embedding_dim: 32}
    """

    registry: ClassVar[Registry[type[ModelConfig]]] = MODELS

    embedding_dim: int = Field(default=16, ge=1)
    """Dimension of embeddings."""

    def build(
        self,
        *,
        num_dense: int,
        sparse_keys: Sequence[str],
        num_labels: int,
        embeddings: EmbeddingsConfig,
        seed: int,
    ) -> nn.Module:
        """A model whose `forward(batch)` gives logits float32 [B, num_labels]; equal arguments give equal parameters.

        Args:
            num_dense: Dense features N.
            sparse_keys: Names of the sparse features F.
            num_labels: Labels L.
            embeddings: How ids become rows, for the model's `EmbeddingBags`.
            seed: Of all first values.

        Raises:
            ConfigError: `embeddings` names a feature or table that does not exist, or there are no sparse features.
        """
        raise NotImplementedError(f"{type(self).__name__}.build")
