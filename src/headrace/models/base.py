"""`ModelConfig`: base class of model configs, including your own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field
from torch import nn

from headrace.embeddings import EmbeddingsConfig
from headrace.models.feature_axes import FeatureAxes
from headrace.registry import MODELS, NamedConfig, Registry

__all__ = ["ModelConfig"]


class ModelConfig(NamedConfig):
    """Base class of model configs.

    A job file refers to your own model by the import path of its config::

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
        """Build a model whose `forward(batch)` returns logits, float32 [B, num_labels]. Equal arguments give equal
        parameters.

        Args:
            num_dense: Number of dense features N.
            sparse_keys: Names of the sparse features F.
            num_labels: Number of labels L.
            embeddings: Configuration of the model's `EmbeddingBags`.
            seed: Seed of all initial values.

        Raises:
            ConfigError: `embeddings` names a feature or table that does not exist, or there are no sparse features.
        """
        raise NotImplementedError(f"{type(self).__name__}.build")

    def feature_axes(self, *, dense_names: Sequence[str], sparse_keys: Sequence[str]) -> FeatureAxes | None:
        """Which entries of the model's parameters belong to which features, see `FeatureAxis`.

        With it, `headrace train --change-features` keeps the weights of features that stay. Parameters without an
        entry have the same shape and meaning for any features.

        Args:
            dense_names: Names of the dense features N.
            sparse_keys: Names of the sparse features F.

        Returns:
            Axes by the parameter's name; None if unknown: the dense layers begin anew when features change.
        """
        return None
