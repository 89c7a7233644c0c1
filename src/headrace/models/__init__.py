"""Models for click-through and conversion rates over `Batch`, each to be read beside its paper."""

from headrace.models.dcnv2 import DCNv2, DCNv2Config
from headrace.models.deepfm import DeepFM, DeepFMConfig
from headrace.models.dlrm import DLRM, DLRMConfig
from headrace.models.registry import ModelConfig, build_model
from headrace.models.wide_deep import WideDeep, WideDeepConfig

__all__ = [
    "DLRM",
    "DCNv2",
    "DCNv2Config",
    "DLRMConfig",
    "DeepFM",
    "DeepFMConfig",
    "ModelConfig",
    "WideDeep",
    "WideDeepConfig",
    "build_model",
]
