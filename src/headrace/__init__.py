"""headrace keeps recommendation models fed: logs in, features, one pass over what is new, a better model out."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.features import FeaturePlan as FeaturePlan
    from headrace.logs import Schema as Schema
    from headrace.pipeline import read_arrow as read_arrow
    from headrace.pipeline import read_parquet as read_parquet
    from headrace.tensors import Batch as Batch
    from headrace.tensors import KeyedJaggedTensor as KeyedJaggedTensor

# Idle OpenMP threads (torch's and Numba's, two pools) must sleep, not spin: spinning takes the cores from the
# pipeline's workers. Measured on 2 busy cores: 3 s a window instead of 23 s. OpenMP reads this when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

_HOMES = {
    "Batch": "headrace.tensors",
    "FeaturePlan": "headrace.features",
    "KeyedJaggedTensor": "headrace.tensors",
    "Schema": "headrace.logs",
    "read_arrow": "headrace.pipeline",
    "read_parquet": "headrace.pipeline",
}

__all__ = ["Batch", "FeaturePlan", "KeyedJaggedTensor", "Schema", "__version__", "read_arrow", "read_parquet"]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used, so that `import headrace` stays cheap."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'headrace' has no attribute {name!r}")
