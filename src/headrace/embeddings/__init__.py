"""Embedding tables: lookup of rows by id, pooling, and sparse updates."""

from headrace.embeddings.bags import (
    EmbeddingBags,
    Lookup,
    UniquePooled,
    apply_gradients,
    embedding_bags,
    key_layouts,
)
from headrace.embeddings.budget import RetentionConfig
from headrace.embeddings.config import EmbeddingsConfig, TableConfig
from headrace.embeddings.keys import KeyedPlan, KeyLayout, Keys
from headrace.embeddings.optimizers import (
    AdagradConfig,
    AdamConfig,
    FTRLConfig,
    RowWiseAdagradConfig,
    SGDConfig,
    SparseOptimizerConfig,
)
from headrace.embeddings.stores.local import EmbeddingStore, LocalStore
from headrace.embeddings.tables.table_group import TableGroup

__all__ = [
    "AdagradConfig",
    "AdamConfig",
    "EmbeddingBags",
    "EmbeddingStore",
    "EmbeddingsConfig",
    "FTRLConfig",
    "KeyLayout",
    "KeyedPlan",
    "Keys",
    "LocalStore",
    "Lookup",
    "RetentionConfig",
    "RowWiseAdagradConfig",
    "SGDConfig",
    "SparseOptimizerConfig",
    "TableConfig",
    "TableGroup",
    "UniquePooled",
    "apply_gradients",
    "embedding_bags",
    "key_layouts",
]
