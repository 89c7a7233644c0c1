"""Sparse optimizers: in-place updates of unique rows from merged gradients."""

from collections.abc import Sequence

from headrace.embeddings.optimizers.adagrad import Adagrad, AdagradConfig
from headrace.embeddings.optimizers.adam import Adam, AdamConfig
from headrace.embeddings.optimizers.base import Rounding, SparseOptimizer, SparseOptimizerConfig
from headrace.embeddings.optimizers.ftrl import FTRL, FTRLConfig
from headrace.embeddings.optimizers.rowwise_adagrad import RowWiseAdagrad, RowWiseAdagradConfig
from headrace.embeddings.optimizers.sgd import SGD, SGDConfig

__all__ = [
    "FTRL",
    "SGD",
    "Adagrad",
    "AdagradConfig",
    "Adam",
    "AdamConfig",
    "FTRLConfig",
    "Rounding",
    "RowWiseAdagrad",
    "RowWiseAdagradConfig",
    "SGDConfig",
    "SparseOptimizer",
    "SparseOptimizerConfig",
    "build_optimizer",
]


def build_optimizer(configs: Sequence[SparseOptimizerConfig], embedding_dim: int) -> SparseOptimizer:
    """Create the optimizer of a table group from one config per table, all of one kind."""
    kinds = {config.kind for config in configs}
    assert len(kinds) == 1, f"tables of one group share the kind of optimizer, given {sorted(kinds)}"
    return configs[0].build(configs, embedding_dim)
