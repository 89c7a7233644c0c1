"""Models by the name a job file gives them."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import nn

from headrace.embeddings import EmbeddingsConfig
from headrace.models.dcnv2 import DCNv2, DCNv2Config
from headrace.models.deepfm import DeepFM, DeepFMConfig
from headrace.models.din import DIN, DINConfig
from headrace.models.dlrm import DLRM, DLRMConfig
from headrace.models.wide_deep import WideDeep, WideDeepConfig

__all__ = ["ModelConfig", "build_model"]

ModelConfig = Annotated[
    DLRMConfig | DCNv2Config | DeepFMConfig | WideDeepConfig | DINConfig, Field(discriminator="kind")
]
"""The config of any model; a field of this type is told apart by its `kind`."""


def build_model(
    config: ModelConfig,
    *,
    num_dense: int,
    sparse_keys: Sequence[str],
    num_labels: int,
    embeddings: EmbeddingsConfig,
    seed: int,
) -> nn.Module:
    """A model whose `forward(batch)` gives logits float32 [B, num_labels]; equal arguments give equal parameters.

    Raises:
        ConfigError: `embeddings` names a feature or space that does not exist, or there are no sparse features.
    """
    models: dict[type, type[nn.Module]] = {
        DLRMConfig: DLRM,
        DCNv2Config: DCNv2,
        DeepFMConfig: DeepFM,
        WideDeepConfig: WideDeep,
        DINConfig: DIN,
    }
    return models[type(config)](
        config,
        num_dense=num_dense,
        sparse_keys=sparse_keys,
        num_labels=num_labels,
        embeddings=embeddings,
        seed=seed,
    )
