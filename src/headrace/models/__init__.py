"""Models of click-through and conversion rates on `Batch`, each implementing a paper."""

from headrace.models.base import ModelConfig
from headrace.models.dcnv2 import DCNv2, DCNv2Config
from headrace.models.deepfm import DeepFM, DeepFMConfig
from headrace.models.din import DIN, DINConfig
from headrace.models.dlrm import DLRM, DLRMConfig
from headrace.models.feature_axes import FeatureAxis
from headrace.models.histories import HistoryEncoderConfig
from headrace.models.wide_deep import WideDeep, WideDeepConfig

__all__ = [
    "DIN",
    "DLRM",
    "DCNv2",
    "DCNv2Config",
    "DINConfig",
    "DLRMConfig",
    "DeepFM",
    "DeepFMConfig",
    "FeatureAxis",
    "HistoryEncoderConfig",
    "ModelConfig",
    "WideDeep",
    "WideDeepConfig",
]
