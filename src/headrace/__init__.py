"""headrace trains recommendation models incrementally: it reads new logs, computes features, and makes one training
pass.

Names and subpackages are loaded on first use, so `import headrace` is cheap::

    import headrace as hr

    hr.read_parquet, hr.Schema, hr.FeaturePlan      logs to batches
    hr.EmbeddingBags, hr.DLRM, hr.apply_gradients   a model and its embeddings
    hr.JobConfig, hr.Trainer                        a whole job
    hr.errors.HeadraceError                         the errors to catch
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from headrace.version import __version__

if TYPE_CHECKING:
    import headrace.cluster as cluster
    import headrace.embeddings as embeddings
    import headrace.errors as errors
    import headrace.features as features
    import headrace.logs as logs
    import headrace.models as models
    import headrace.observe as observe
    import headrace.pipeline as pipeline
    import headrace.registry as registry
    import headrace.resources as resources
    import headrace.scheduling as scheduling
    import headrace.scoring as scoring
    import headrace.simulation as simulation
    import headrace.tensors as tensors
    import headrace.training as training
    import headrace.tuning as tuning
    from headrace.embeddings import EmbeddingBags as EmbeddingBags
    from headrace.embeddings import EmbeddingsConfig as EmbeddingsConfig
    from headrace.embeddings import KeyedPlan as KeyedPlan
    from headrace.embeddings import TableConfig as TableConfig
    from headrace.embeddings import apply_gradients as apply_gradients
    from headrace.embeddings import key_layouts as key_layouts
    from headrace.errors import CheckpointError as CheckpointError
    from headrace.errors import ConfigError as ConfigError
    from headrace.errors import DataError as DataError
    from headrace.errors import HeadraceError as HeadraceError
    from headrace.errors import PipelineError as PipelineError
    from headrace.features import FeaturePlan as FeaturePlan
    from headrace.logs import Schema as Schema
    from headrace.models import DIN as DIN
    from headrace.models import DLRM as DLRM
    from headrace.models import DCNv2 as DCNv2
    from headrace.models import DeepFM as DeepFM
    from headrace.models import ModelConfig as ModelConfig
    from headrace.models import WideDeep as WideDeep
    from headrace.pipeline import BatchIterator as BatchIterator
    from headrace.pipeline import Pipeline as Pipeline
    from headrace.pipeline import from_iterable as from_iterable
    from headrace.pipeline import read_arrow as read_arrow
    from headrace.pipeline import read_parquet as read_parquet
    from headrace.scoring import ExportedModel as ExportedModel
    from headrace.tensors import Batch as Batch
    from headrace.tensors import InverseKeyedJaggedTensor as InverseKeyedJaggedTensor
    from headrace.tensors import KeyedJaggedTensor as KeyedJaggedTensor
    from headrace.training import BinaryMetrics as BinaryMetrics
    from headrace.training import CheckpointFolder as CheckpointFolder
    from headrace.training import JobConfig as JobConfig
    from headrace.training import Scores as Scores
    from headrace.training import Snapshot as Snapshot
    from headrace.training import Trainer as Trainer
    from headrace.training import load_optimizer_arrays as load_optimizer_arrays
    from headrace.training import optimizer_arrays as optimizer_arrays

# Idle OpenMP threads (torch and Numba have two pools) must sleep, not spin, because spinning takes cores from the
# pipeline's workers. Measured on 2 busy cores: 3 s per window instead of 23 s. OpenMP reads this when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_SUBPACKAGES = (
    "cluster",
    "embeddings",
    "errors",
    "features",
    "logs",
    "models",
    "observe",
    "pipeline",
    "registry",
    "resources",
    "scheduling",
    "scoring",
    "simulation",
    "tensors",
    "training",
    "tuning",
)

_NAMES = {
    "embeddings": (
        "EmbeddingBags",
        "EmbeddingsConfig",
        "KeyedPlan",
        "TableConfig",
        "apply_gradients",
        "key_layouts",
    ),
    "errors": ("CheckpointError", "ConfigError", "DataError", "HeadraceError", "PipelineError"),
    "features": ("FeaturePlan",),
    "logs": ("Schema",),
    "models": ("DCNv2", "DIN", "DLRM", "DeepFM", "ModelConfig", "WideDeep"),
    "pipeline": ("BatchIterator", "Pipeline", "from_iterable", "read_arrow", "read_parquet"),
    "scoring": ("ExportedModel",),
    "tensors": ("Batch", "InverseKeyedJaggedTensor", "KeyedJaggedTensor"),
    "training": (
        "BinaryMetrics",
        "CheckpointFolder",
        "JobConfig",
        "Scores",
        "Snapshot",
        "Trainer",
        "load_optimizer_arrays",
        "optimizer_arrays",
    ),
}
"""The subpackage of each top-level name."""

_HOMES = {name: f"headrace.{subpackage}" for subpackage, names in _NAMES.items() for name in names}

__all__ = [
    "DIN",
    "DLRM",
    "Batch",
    "BatchIterator",
    "BinaryMetrics",
    "CheckpointError",
    "CheckpointFolder",
    "ConfigError",
    "DCNv2",
    "DataError",
    "DeepFM",
    "EmbeddingBags",
    "EmbeddingsConfig",
    "ExportedModel",
    "FeaturePlan",
    "HeadraceError",
    "InverseKeyedJaggedTensor",
    "JobConfig",
    "KeyedJaggedTensor",
    "KeyedPlan",
    "ModelConfig",
    "Pipeline",
    "PipelineError",
    "Schema",
    "Scores",
    "Snapshot",
    "TableConfig",
    "Trainer",
    "WideDeep",
    "__version__",
    "apply_gradients",
    "cluster",
    "embeddings",
    "errors",
    "features",
    "from_iterable",
    "key_layouts",
    "load_optimizer_arrays",
    "logs",
    "models",
    "observe",
    "optimizer_arrays",
    "pipeline",
    "read_arrow",
    "read_parquet",
    "registry",
    "resources",
    "scheduling",
    "scoring",
    "simulation",
    "tensors",
    "training",
    "tuning",
]


def __getattr__(name: str) -> Any:
    """Load a public name or subpackage on first use."""
    if name in _SUBPACKAGES:
        return import_module(f"headrace.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'headrace' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
